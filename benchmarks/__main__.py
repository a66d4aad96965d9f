"""Run every benchmark and print its table."""

from . import propagation, quartz, simulated

if __name__ == "__main__":
    propagation.main()
    quartz.main()
    simulated.main()

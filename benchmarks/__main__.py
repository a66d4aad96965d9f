"""Run every benchmark and print its table."""

from . import quartz, simulated

if __name__ == "__main__":
    quartz.main()
    simulated.main()

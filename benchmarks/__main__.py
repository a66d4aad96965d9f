"""Run every benchmark and print its table."""

from . import integrators, quartz, simulated

if __name__ == "__main__":
    integrators.main()
    quartz.main()
    simulated.main()

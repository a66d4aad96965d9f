"""Run every benchmark and print its table."""

from . import integrators, pets, propagation, quartz, simulated, thickness, uncertainties

if __name__ == "__main__":
    propagation.main()
    integrators.main()
    quartz.main()
    pets.main()
    simulated.main()
    thickness.main()
    uncertainties.main()

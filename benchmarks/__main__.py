"""Run every benchmark and print its table."""

from . import integrators, missing_atoms, pets, propagation, quartz, simulated, uncertainties

if __name__ == "__main__":
    propagation.main()
    integrators.main()
    quartz.main()
    pets.main()
    simulated.main()
    uncertainties.main()
    missing_atoms.main()

"""The package list; everything else is in pyproject.toml.

The folder ``phil/`` of the repository is shipped as ``dials_hybrid/phil/``, which
the package discovery of pyproject.toml cannot express next to ``find``.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["dials_hybrid", "dials_hybrid.*"]),
        "dials_hybrid.phil",
    ],
    package_dir={"dials_hybrid.phil": "phil"},
)

"""Measurements of accuracy and speed; `make bench` runs them all."""

import dials_hybrid  # noqa: F401  # before cctbx: it loads torch with its own libgomp

"""Measurements of accuracy and speed; `make bench` runs some, `make bench ARGS=NAME` the others."""

import dials_hybrid  # noqa: F401  # before cctbx, or torch has one core

"""Measurements of accuracy and speed; `make bench` runs them all."""

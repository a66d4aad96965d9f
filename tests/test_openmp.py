"""torch and cctbx in one process, each with threads."""

import subprocess
import sys

import pytest

SUMS = """
import {first}
import torch

torch.set_num_threads(2)
for n, columns in [(100, 60), (1000, 200)] * 20:
    values = torch.rand(n, columns, dtype=torch.float64)
    place = torch.randint(0, n, (n,))
    found = torch.zeros_like(values).index_add(0, place, values)
    assert torch.allclose(found.sum(0), values.sum(0))
"""


@pytest.mark.parametrize(
    "first", ["dials_hybrid.io_structures", "dials_hybrid.api", "dials_hybrid.io_dials"]
)
def test_sums_in_threads_are_right_beside_cctbx(first):
    run = subprocess.run([sys.executable, "-c", SUMS.format(first=first)], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-500:]

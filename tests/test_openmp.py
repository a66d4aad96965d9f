"""torch and cctbx in one process, each with threads.

cctbx brings stand-ins for OpenMP by which there is one thread, number 0; imported before torch,
they answer torch. What runs in threads all the same then does everything in each of them:
`index_add` of matrices corrupts sums or memory, a sort of 200 000 integers crashes, and after
`torch.set_num_threads(2)` baddbmm(c, a, b) is c + 2 a b. Products of batches are then wrong in some
runs on some machines: who asks for threads in spite of the warning is promised nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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

LATE = """
import iotbx.cif
import pytest

with pytest.warns(RuntimeWarning, match="import torch, or dials_hybrid, before cctbx"):
    import dials_hybrid
import torch

assert torch.get_num_threads() == 1
assert (torch.randint(0, 10**9, (300_000,)).sort().values.diff() >= 0).all()
a = torch.rand(2, 200, 200, dtype=torch.complex128)
assert torch.allclose(torch.baddbmm(a, a, a), a + a @ a)
"""

EVALUATED = """
import sys

if sys.argv[1] == "late":
    import iotbx.cif
import dials_hybrid
import torch

import tiny
from dials_hybrid.linear import CheapModel, Linearisation
from dials_hybrid.refine import build_model

torch.manual_seed(0)
problem = tiny.problem(blocks=12)
model = build_model(problem, tiny.settings(), seed=0)
links, depths = len(problem.observations.link_block), len(model.depth)
parameters = sum(p.numel() for p in model.crystal.parameters())
shapes = (links, depths), (links, parameters, depths), (links, 2, depths)
cheap = CheapModel(model, Linearisation(*(torch.rand(s, dtype=torch.float64) for s in shapes)))
x = cheap.start() + 0.1
found = [cheap.slopes(x) for _ in range(10)]
torch.save([torch.stack([f[i].detach() for f in found]) for i in (0, 1)], sys.argv[2])
"""


@pytest.mark.parametrize(
    "first", ["dials_hybrid.io_structures", "dials_hybrid.api", "dials_hybrid.io_dials"]
)
def test_sums_in_threads_are_right_beside_cctbx(first):
    run = subprocess.run([sys.executable, "-c", SUMS.format(first=first)], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-500:]


def test_torch_after_cctbx_is_warned_of_and_keeps_to_one_core():
    run = subprocess.run([sys.executable, "-c", LATE], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()[-500:]


def test_intensities_and_jacobian_are_right_where_cctbx_came_first(tmp_path):
    """With the threads that the package leaves torch."""
    found = {}
    for order in ("first", "late"):
        file = tmp_path / f"{order}.pt"
        env = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
        command = [sys.executable, "-c", EVALUATED, order, str(file)]
        here = Path(__file__).parent
        run = subprocess.run(command, capture_output=True, cwd=here, env=env, timeout=100)
        assert run.returncode == 0, run.stderr.decode()[-500:]
        found[order] = torch.load(file)
    for right, late in zip(found["first"], found["late"], strict=True):
        assert float(right.abs().max()) > 0
        torch.testing.assert_close(late, right[:1].expand_as(late), rtol=1e-10, atol=1e-10)

"""Exponentials of the potential in machine code, and by several cores, are those of torch."""

import pytest
import torch
from test_compiled_stages import PRECISION, assert_same, in_precision, pytestmark, real  # noqa: F401
from test_propagation import centred, hermitian

from dials_hybrid.propagation import compiled_series, series, stages

TIMES = (3.0, 17.0, -4.0)


def absorbing(n, f=1, size=3e-4):
    """Return a potential that is not Hermitian."""
    return hermitian(n, f, size) + 0.1j * hermitian(n, f, size, seed=5)


def results(room, v, cores):
    """Return exponentials for both ways, and a gradient, as complex matrices."""
    factors = room.factors_of(v, TIMES, cores)
    ahead, back = factors.ahead(), factors.back()
    slopes = torch.stack([hermitian(v.shape[1], len(v), seed=k) for k in (7, 8, 9)]) + 0.3j
    slopes = slopes.to(v.dtype.to_complex())
    if room is compiled_series:
        ahead, back = (torch.complex(x[:, :, 0], x[:, :, 1]) for x in (ahead, back))
        slopes = compiled_series.parts(slopes)
    return ahead, back, factors.adjoint(slopes, v.dtype)


# real, with one block for each core, and others; squared, as is not done in machine code
@pytest.mark.parametrize("crystal", [hermitian, centred, real, absorbing])
@pytest.mark.parametrize("size", [3e-4, 3e-2])
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize(("f", "cores"), [(1, 1), (1, 2), (1, 3), (3, 3), (3, 2), (9, 2)])
def test_exponentials_and_their_adjoint_are_those_of_torch(crystal, size, dtype, f, cores):
    v = in_precision(crystal(7, f, size), dtype)
    squared = not isinstance(compiled_series.factors_of(v, TIMES, 1), compiled_series.PartFactors)
    assert squared == (size > 1e-2)
    assert_same(results(compiled_series, v, cores), results(stages, v, 1), dtype)


@pytest.mark.parametrize("crystal", [hermitian, centred])
@pytest.mark.parametrize("size", [3e-4, 3e-2])
@pytest.mark.parametrize("f", [1, 3, 9])
def test_cores_that_share_a_series_find_what_one_finds(crystal, size, f):
    v = crystal(7, f, size)
    slopes = torch.stack([hermitian(7, f, seed=k) for k in (7, 8, 9)])
    found = []
    for cores in (1, 2):
        made = series.Series.of(v, TIMES, cores)
        values = made.values()
        found.append((values[-1], made.adjoint(slopes, values, v.dtype)))
    assert_same(*found, torch.complex128)


# beside what is no noise, and as the only number that is not real
@pytest.mark.parametrize("crystal", [hermitian, centred])
@pytest.mark.parametrize("bad", [torch.nan, 1j * torch.nan])
def test_nan_is_not_taken_for_noise(crystal, bad):
    v = crystal(7, 2).to(torch.complex64)
    v[1, 2, 3] = bad
    with pytest.raises(ValueError, match="NaN"):
        compiled_series.factors_of(v, TIMES, 1)

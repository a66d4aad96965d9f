"""What a pass holds at one time: bounded by the setting, whatever the number of frames."""

import dataclasses

import pytest
import tiny
import torch
from meter import Meter
from test_refine import SETTINGS, make_truth

from dials_hybrid import model as model_room
from dials_hybrid.data import Problem
from dials_hybrid.model import HybridModel
from dials_hybrid.propagation import (
    Bloch,
    Chebyshev,
    DepthGrid,
    Splitting,
    compiled_series,
    compiled_stages,
    splitting,
)
from dials_hybrid.propagation.kernels import can_compile
from dials_hybrid.refine import Refinement, RefineSettings

MANY_BEAMS = {"g_max": 1.7, "s_max": 0.02}
FEW_BEAMS = {"g_max": 0.8, "s_max": 0.01}
SERIES = {"propagator": Chebyshev()}
CASES = {
    "many beams": ({"samples": 4}, {**MANY_BEAMS, "depth": DepthGrid(60.0, 8)}),
    "many samples": ({"samples": 150}, FEW_BEAMS),
    "many depths": ({"samples": 8}, {**FEW_BEAMS, "depth": DepthGrid(20.0, 200)}),
    "series, many beams": ({"samples": 4}, {**MANY_BEAMS, **SERIES, "depth": DepthGrid(60.0, 8)}),
    "series, many samples": ({"samples": 150}, {**FEW_BEAMS, **SERIES}),
    "series, many depths": (
        {"samples": 8},
        {**FEW_BEAMS, **SERIES, "depth": DepthGrid(20.0, 200)},
    ),
    "far beams": ({"samples": 4}, {**FEW_BEAMS, "g_max": 1.7, "perturbation": 0.1}),
    "single precision, far beams": (
        {"samples": 4},
        {**FEW_BEAMS, "g_max": 1.7, "perturbation": 0.1, "precision": "single"},
    ),
    "single precision": ({"samples": 8}, {**MANY_BEAMS, "precision": "single"}),
}


@pytest.fixture(autouse=True)
def one_thread():
    """The meter sees what its own thread makes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def by_torch(monkeypatch):
    """Do without machine code, whose memory the meter does not see."""
    monkeypatch.setattr(splitting, "can_compile", lambda x: False)


def made(scan, choices, memory=2e9, blocks=4) -> HybridModel:
    problem = tiny.problem(blocks=blocks, width=1.0, g_limit=1.0, **scan)
    return HybridModel(problem, tiny.settings(memory=memory, **choices))


def batch_peak(model) -> float:
    """Largest number of bytes in the work on one batch: value, tangents or gradient."""
    table, moved = model.potential_table().detach(), model.potential_moves()
    rotation = model.orientation().detach()
    batch = max(model.batches, key=lambda b: len(b.blocks))
    with Meter() as tangents:
        found = model.batch_tangents(batch, table, moved, rotation)
    del found
    with Meter() as gradient:
        part = model.batch_profiles(batch, table.requires_grad_(), rotation.requires_grad_())
        part.sum().backward()
    return max(tangents.peak, gradient.peak)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("blocks", [1, 2])
def test_batches_hold_less_than_the_setting_and_not_much_less(case, blocks, monkeypatch):
    monkeypatch.setattr(model_room, "_CACHE_ELEMENTS", 10**9)
    setting = 1.01 * blocks * made(*CASES[case]).block_bytes()
    model = made(*CASES[case], memory=setting)
    assert [len(batch.blocks) for batch in model.batches] == [blocks] * (4 // blocks)
    assert setting / 4 < batch_peak(model) < setting


@pytest.mark.parametrize("case", [case for case in CASES if "series" not in case])
def test_machine_code_holds_less_than_the_estimate(case, monkeypatch):
    """Of its arrays the meter sees those that are kept from the way there to the way back."""
    monkeypatch.setattr(splitting, "can_compile", can_compile)
    for place in (compiled_series, compiled_stages):
        monkeypatch.setattr(place, "room", lambda like, *shape: like.new_empty(shape))
    model = made(*CASES[case])
    assert batch_peak(model) < model.block_bytes() * max(len(b.blocks) for b in model.batches)


@pytest.mark.parametrize("case", CASES)
def test_bloch_waves_hold_less_than_the_estimate(case):
    scan, choices = CASES[case]
    method = Bloch(choices.get("propagator", Splitting()))
    model = made(scan, {**choices, "propagator": method})
    assert batch_peak(model) < model.block_bytes() * max(len(b.blocks) for b in model.batches)


def repeated(problem, times) -> Problem:
    """Return the problem with its sweep measured several times over."""
    scan, o = problem.scan, problem.observations
    steps = {
        "sweep": 1,
        "row": len(o.row),
        "link_observation": len(o.row),
        "link_block": len(scan.sweep),
    }

    def many(record):
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        fields = {k: v for k, v in fields.items() if v is not None}
        return type(record)(
            **{
                k: torch.cat([v + i * steps.get(k, 0) for i in range(times)])
                for k, v in fields.items()
            }
        )

    free = o.free.to(torch.int64)  # bool + 0 would be a number
    repeats = many(o.replace(free=free))
    return problem.replace(scan=many(scan), observations=repeats.replace(free=repeats.free > 0))


def pass_peaks(problem) -> list[float]:
    """Peaks of every kind of pass in bytes, without the arrays that it returns."""
    model = HybridModel(problem, tiny.settings(memory=2e6, **MANY_BEAMS))
    out = []
    for name in ("value_profiles", "tangents", "profiles"):
        with Meter() as meter:
            found = getattr(model, name)()
            if name == "profiles":
                found.sum().backward()
        arrays = found if isinstance(found, tuple) else (found,)
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in arrays}
        out.append(meter.peak - sum(held.values()))
    return out


def test_passes_do_not_grow_with_the_number_of_frames():
    problem = tiny.problem(blocks=2, width=1.0, g_limit=1.0)
    for few, many in zip(pass_peaks(problem), pass_peaks(repeated(problem, 5)), strict=True):
        assert many < 1.1 * few


def test_the_model_does_not_hold_matrices_of_all_frames():
    def growth(name):
        sizes = []
        for blocks in (2, 6):
            problem = tiny.problem(blocks=blocks, width=1.0, g_limit=1.0, samples=4)
            with Meter() as meter:
                model = HybridModel(problem, tiny.settings(**MANY_BEAMS))
            sizes.append(getattr(meter, name))
        beams = int(model.beams.counts.max())
        return (sizes[1] - sizes[0]) / (4 * beams**2)

    assert growth("now") < 4 and growth("peak") < 8  # bytes per pair of beams of a frame


def test_the_estimate_covers_a_refinement():
    settings = dataclasses.replace(SETTINGS, memory=1e6)
    loop = Refinement(make_truth()[0], settings, RefineSettings(2))
    estimate = loop.estimate()[1]
    with Meter() as meter:
        loop.run()
    assert estimate / 4 < meter.peak < estimate


def test_the_meter_counts_what_is_alive():
    with Meter() as meter:
        a = torch.zeros(1000, dtype=torch.float64)
        a = a + 1  # both are alive for a moment
        a += 1
        b = a[:10].view(5, 2)
    assert (meter.peak, meter.now) == (16_000, 8000)
    del a, b
    assert meter.now == 0

"""The records: validation, conversion and files."""

import dataclasses
import math
import os

import h5py
import pytest
import tiny
import torch

from dials_hybrid.data import Problem
from dials_hybrid.records import InputError, Record, load_records, replacing, save_records


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny.problem(sweeps=2)


def same(first, second) -> None:
    """Assert that two records of one type are equal, bit by bit and in their dtypes."""
    assert type(first) is type(second)
    for f in dataclasses.fields(first):
        a, b = getattr(first, f.name), getattr(second, f.name)
        if isinstance(a, Record):
            same(a, b)
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), f.name
        else:
            assert a == b, f.name


# --- validation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ("structure", "site"),
        ("structure", "u_star"),
        ("structure", "sym_trans"),
        ("structure", "adp_projector"),
        ("scan", "setting"),
        ("scan", "sample_width"),
        ("scan", "s0"),
        ("observations", "hkl"),
        ("observations", "sigma"),
        ("observations", "link_first"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(problem, record, field):
    value = getattr(getattr(problem, record), field)
    with pytest.raises(ValueError, match=rf"{field}: shape"):
        getattr(problem, record).replace(**{field: value[:-1]})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("record", "field"),
    [
        ("structure", "site"),
        ("structure", "u_iso"),
        ("scan", "setting"),
        ("scan", "s0"),
        ("observations", "intensity"),
        ("observations", "sigma"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_name(problem, record, field, bad):
    value = getattr(getattr(problem, record), field).clone()
    value.view(-1)[0] = bad
    with pytest.raises(ValueError, match=rf"{field} holds NaN"):
        getattr(problem, record).replace(**{field: value})


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_sigma_must_be_positive(problem, bad):
    sigma = problem.observations.sigma.clone()
    sigma[1] = bad
    with pytest.raises(ValueError, match="sigma must be positive"):
        problem.observations.replace(sigma=sigma)


def test_an_observation_without_a_link_is_refused(problem):
    links = problem.observations.link_observation.clone()
    links[links == 2] = 1
    with pytest.raises(ValueError, match="linked to no block"):
        problem.observations.replace(link_observation=links)


def test_records_are_frozen(problem):
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.observations.sigma = None


def test_observed_means_above_three_sigma(problem):
    o = problem.observations
    sigma = torch.ones_like(o.sigma)
    intensity = torch.full_like(sigma, 3.0)
    intensity[0] = 3.01
    mask = o.replace(intensity=intensity, sigma=sigma).observed
    assert mask[0] and not mask[1:].any()


def test_scan_knows_its_wavelength_and_block_angles(problem):
    assert problem.scan.wavelength == pytest.approx(tiny.WAVELENGTH, rel=1e-12)
    middle = torch.tensor([1, 3, 5, 1, 3, 5]).double() * tiny.DEGREE
    assert torch.allclose(problem.scan.block_angle, middle)


# --- conversion -----------------------------------------------------------------------------


def test_to_changes_only_floating_point_tensors(problem):
    single = problem.to(dtype=torch.float32)
    assert single.structure.site.dtype == single.observations.sigma.dtype == torch.float32
    assert single.observations.hkl.dtype == torch.int64
    assert single.observations.free.dtype == single.structure.anisotropic.dtype == torch.bool
    assert single.structure.labels == problem.structure.labels
    assert problem.structure.site.dtype == torch.float64


def test_to_without_a_dtype_keeps_it(problem):
    same(problem.to("cpu"), problem)


# --- files ----------------------------------------------------------------------------------


def test_problem_comes_back_from_a_file_unchanged(problem, tmp_path):
    problem = problem.replace(provenance={"files": ["a.expt"], "settings": {"d_min": 0.8}})
    problem.save(tmp_path / "problem.h5")
    same(Problem.load(tmp_path / "problem.h5"), problem)


def test_a_file_holds_further_records_and_values(problem, tmp_path):
    path = tmp_path / "checkpoint.h5"
    save_records(
        path, problem=problem, state={"iteration": 3, "loss": [1.5, None]}, x=torch.ones(2)
    )
    values = load_records(path)
    assert values["state"] == {"iteration": 3, "loss": [1.5, None]}
    assert torch.equal(values["x"], torch.ones(2))
    same(Problem.load(path), problem)


def refused(path) -> str:
    """Return the one sentence of the InputError that loading must raise."""
    with pytest.raises(InputError) as caught:
        Problem.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "missing.h5")


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"data_quartz\n", b"\x89HDF\r\n\x1a\n" + bytes(40)])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    path = tmp_path / "other.h5"
    path.write_bytes(content)
    assert "cannot be read as HDF5" in refused(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_cut_short_is_refused(problem, tmp_path, share):
    path = tmp_path / "cut.h5"
    problem.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as handle:
        handle["problem"] = 1
    assert "not one that dials_hybrid wrote" in refused(path)


def test_another_format_version_is_refused(problem, tmp_path):
    path = tmp_path / "new.h5"
    problem.save(path)
    with h5py.File(path, "a") as handle:
        handle.attrs["version"] = 99
    assert "format 99" in refused(path)


def test_a_missing_field_is_refused_by_name(problem, tmp_path):
    path = tmp_path / "lacking.h5"
    problem.save(path)
    with h5py.File(path, "a") as handle:
        del handle["problem/scan/angle"]
    assert "lacks angle" in refused(path)


def test_a_file_without_a_problem_is_refused(tmp_path):
    path = tmp_path / "other.h5"
    save_records(path, x=torch.ones(2))
    assert "no refinement problem" in refused(path)


@pytest.mark.parametrize("interrupt", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, interrupt):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(interrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise interrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_value_that_cannot_be_written_leaves_the_old_file(problem, tmp_path):
    path = tmp_path / "problem.h5"
    problem.save(path)
    with pytest.raises(TypeError):
        save_records(path, problem=problem, odd=object())
    same(Problem.load(path), problem)
    assert os.listdir(tmp_path) == ["problem.h5"]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    (tmp_path / "b.txt").write_text("plain")
    modes = {(tmp_path / name).stat().st_mode for name in ("a.txt", "b.txt")}
    assert len(modes) == 1

"""Files that cannot be used: one sentence that names the file, and what to do."""

import functools
import json
import re

import numpy as np
import pytest

pytest.importorskip("dials.array_family.flex", reason="DIALS is not installed")

import commands
import synthetic
from dials.array_family import flex
from dxtbx.model import BeamFactory, ExperimentList, Scan

from dials_hybrid import io_dials
from dials_hybrid.records import InputError

SMALL = {"images": 4}

refused = functools.partial(commands.refused, io_dials.load)


def damaged(source, target, change):
    """Write the bytes of a file, changed, and return the new path."""
    target.write_bytes(change(source.read_bytes()))
    return target


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["expt", "refl"])
def test_missing_file(sweep, tmp_path, missing):
    paths = {"expt": sweep.expt, "refl": sweep.refl}
    paths[missing] = tmp_path / f"absent.{missing}"
    assert f"absent.{missing}: no such file" in refused(paths.values())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["expt"], r"no \.refl file"),
        (["refl"], r"no \.expt file"),
        ([], r"no \.expt file among nothing"),
        (["expt", "refl", "cif"], r"quartz\.cif: neither \.expt nor \.refl"),
        (["expt", "refl", "expt"], r"integrated\.expt: given twice"),
        (["expt", "refl", "refl"], r"integrated\.refl: given twice"),
    ],
)
def test_wrong_set_of_files(sweep, given, expected):
    assert re.search(expected, refused([getattr(sweep, name) for name in given]))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: b"not msgpack\n",
        lambda data: b"\x80\x04N.",  # a pickle must not be opened
    ],
    ids=["half", "last byte", "ten bytes", "empty", "text", "pickle"],
)
def test_damaged_reflections(sweep, tmp_path, change):
    bad = damaged(sweep.refl, tmp_path / "bad.refl", change)
    assert refused([sweep.expt, bad]).startswith(f"{bad}: not a complete DIALS reflection file")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff\xfe\x00binary",
        lambda data: b'{"some": "json"}',
        lambda data: b"3",
        lambda data: b'{"__id__": "ExperimentList"}',
        lambda data: data.replace(b'"beam": 0', b'"beam": 7'),
        lambda data: data.replace(b'"wavelength": 0.0251', b'"wavelength": "short"'),
    ],
    ids=["half", "empty", "binary", "other json", "number", "no models", "index", "type"],
)
def test_damaged_experiments(sweep, tmp_path, change):
    bad = damaged(sweep.expt, tmp_path / "bad.expt", change)
    message = refused([bad, sweep.refl])
    assert message.startswith(f"{bad}: cannot be read as a DIALS experiment list (")


def test_no_experiments(sweep, tmp_path):
    empty = tmp_path / "empty.expt"
    empty.write_text(json.dumps({"__id__": "ExperimentList", "experiment": []}))
    assert f"{empty}: holds no experiments" in refused([empty, sweep.refl])


def test_no_reflections(sweep, tmp_path, loaded):
    empty = tmp_path / "empty.refl"
    loaded.reflections.select(flex.bool(len(loaded.reflections), False)).as_msgpack_file(str(empty))
    assert f"{empty}: holds no reflections" in refused([sweep.expt, empty])


# --- models ---------------------------------------------------------------------------------


def without(name):
    return lambda experiment: setattr(experiment, name, None)


def x_rays(experiment):
    experiment.beam = BeamFactory.simple(0.9763)


def not_rotating(experiment):
    experiment.scan = Scan(experiment.scan.get_image_range(), (0.0, 0.0))


@pytest.mark.parametrize(
    ("change", "found", "advice"),
    [
        (without("crystal"), "has no crystal", "run dials.index"),
        (without("scan"), "still images", "rotation sweep"),
        (not_rotating, "the rotation per image is 0 degrees", "rotation sweep"),
        (without("goniometer"), "has no goniometer", "import the images again"),
        (without("beam"), "has no beam", "dials.integrate"),
        (without("detector"), "or no detector", "dials.integrate"),
        (x_rays, "wavelength 0.9763 A", "electron diffraction data"),
    ],
)
def test_unusable_models(tmp_path, change, found, advice):
    experiment = synthetic.make_experiment(**SMALL)
    reflections = synthetic.make_reflections([experiment])
    experiment.imageset = None  # it would bring back the models that are taken out
    change(experiment)
    expt, refl = synthetic.write_pair(tmp_path, "bad", ExperimentList([experiment]), reflections)
    message = refused([expt, refl])
    assert message.startswith(f"{expt}: ") and found in message and advice in message


@pytest.mark.skipif(not hasattr(Scan, "has_property"), reason="this dxtbx has rotation scans only")
def test_scan_along_something_else():
    scan = Scan((1, 3), {"time_of_flight": flex.double([1, 2, 3])})
    assert io_dials._oscillation_width(scan) == 0


def test_second_experiment_is_named(tmp_path):
    experiments = ExperimentList(
        [synthetic.make_experiment(start=start, **SMALL) for start in (0.0, 10.0)]
    )
    reflections = synthetic.make_reflections(experiments)
    x_rays(experiments[1])
    paths = synthetic.write_pair(tmp_path, "two", experiments, reflections)
    assert refused(paths).startswith(f"{paths[0]} (experiment 1): wavelength")


# --- reflections that do not fit ------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["intensity.sum.value"], "lacks intensity.sum.value"),
        (["miller_index", "xyzcal.mm"], "lacks miller_index, xyzcal.mm"),
        ([], "no reflection is flagged integrated"),
    ],
)
def test_not_integrated(sweep, tmp_path, loaded, columns, found):
    table = loaded.reflections
    for column in columns:
        del table[column]
    table.unset_flags(flex.bool(len(table), True), table.flags.integrated)
    bad = tmp_path / "indexed.refl"
    table.as_msgpack_file(str(bad))
    message = refused([sweep.expt, bad])
    assert message == f"{bad}: not integrated yet ({found}); run dials.integrate first"


def test_reflections_of_other_experiments(sweep, tmp_path):
    other = synthetic.make_sweep(tmp_path, "other", start=50.0, **SMALL)
    message = refused([sweep.expt, other[1]])
    assert message.startswith(f"{other[1]}: reflections of experiment sweep 50")
    assert str(sweep.expt) in message


def test_experiment_without_reflections(sweep, tmp_path):
    other = synthetic.make_sweep(tmp_path, "other", start=50.0, **SMALL)
    message = refused([sweep.expt, sweep.refl, other[0]])
    assert message.startswith(f"{other[0]}: none of the .refl files has reflections of it")


def test_reflections_of_one_sweep_in_two_files(sweep, tmp_path):
    copy = damaged(sweep.refl, tmp_path / "copy.refl", lambda data: data)
    message = refused([sweep.expt, sweep.refl, copy])
    assert message.startswith(f"{copy}: reflections of {sweep.expt}, of which {sweep.refl}")


def test_same_experiment_in_two_files(sweep, tmp_path):
    copy = damaged(sweep.expt, tmp_path / "copy.expt", lambda data: data)
    message = refused([sweep.expt, copy, sweep.refl])
    assert message.startswith(f"{copy}: the same experiment as {sweep.expt}")


def test_no_identifiers_and_other_counts(tmp_path):
    experiments = ExperimentList(
        [synthetic.make_experiment(start=start, **SMALL) for start in (0.0, 10.0)]
    )
    reflections = synthetic.make_reflections(experiments[:1])
    for experiment in experiments:
        experiment.identifier = ""
    paths = synthetic.write_pair(tmp_path, "unnamed", experiments, reflections)
    assert "1 sets of reflections for 2 experiments" in refused(paths)


# --- sweeps that do not belong together -----------------------------------------------------


def two_sweeps(tmp_path, change):
    """Write two sweeps, the second changed, and return all four paths."""
    first = synthetic.make_sweep(tmp_path, "first", start=0.0, **SMALL)
    experiments = ExperimentList([synthetic.make_experiment(start=10.0, **SMALL)])
    reflections = synthetic.make_reflections(experiments)
    change(experiments[0])
    return [*first, *synthetic.write_pair(tmp_path, "second", experiments, reflections)]


def test_wavelengths_differ(tmp_path):
    def other_voltage(experiment):
        experiment.beam = BeamFactory.simple(0.0370)

    paths = two_sweeps(tmp_path, other_voltage)
    message = refused(paths)
    assert message.startswith(f"{paths[2]}: wavelength 0.037 A, but {paths[0]} has 0.0251 A")


def stretched(factor):
    a, b, c, *angles = synthetic.CELL

    def change(experiment):
        experiment.crystal = synthetic.make_experiment(cell=(a, b, c * factor, *angles)).crystal

    return change


def test_cells_differ_too_much(tmp_path):
    paths = two_sweeps(tmp_path, stretched(1.08))
    message = refused(paths)
    assert message.startswith(f"{paths[2]}: cell (4.9160,") and "dials.reindex" in message


@pytest.mark.parametrize(("factor", "count"), [(1.02, 1), (1.005, 0)])
def test_cells_differ_a_little(tmp_path, warnings_logged, factor, count):
    paths = two_sweeps(tmp_path, stretched(factor))
    io_dials.load(paths)
    assert len(warnings_logged()) == count
    assert all(str(paths[2]) in message for message in warnings_logged())


# --- reflections that cannot be selected ----------------------------------------------------


def test_nothing_left(loaded):
    with pytest.raises(InputError, match=r"d <= 0\.01 A: \d+ removed\); relax selection"):
        io_dials.select_reflections(loaded.reflections, io_dials.Selection(d_max=0.01))


@pytest.mark.parametrize("bad", [np.nan, -1.0, 0.0, np.inf])
def test_no_usable_variance(loaded, bad):
    loaded.reflections["intensity.sum.variance"] = flex.double(len(loaded.reflections), bad)
    with pytest.raises(InputError, match="no reflection is left"):
        io_dials.select_reflections(loaded.reflections, io_dials.Selection())


@pytest.mark.parametrize(
    ("intensity", "column", "advice"),
    [
        ("scale", None, "run dials.scale"),
        ("profile", "intensity.prf.variance", "run dials.integrate first"),
    ],
)
def test_missing_intensity(loaded, intensity, column, advice):
    if column:
        del loaded.reflections[column]
    with pytest.raises(InputError, match=advice):
        io_dials.select_reflections(loaded.reflections, io_dials.Selection(intensity=intensity))


def test_no_window(loaded):
    """Without profile model and bbox the rotation window is not known."""
    del loaded.reflections["bbox"]
    loaded.experiments[0].profile = None
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(1.0, 0.5))
    with pytest.raises(InputError, match="no profile model and the reflections no bbox"):
        io_dials.observations_from_reflections(
            loaded.reflections, np.arange(5), loaded.experiments, scan, io_dials.Selection()
        )


def test_reflections_outside_the_scan(loaded):
    x, y, z = loaded.reflections["xyzcal.mm"].parts()
    loaded.reflections["xyzcal.mm"] = flex.vec3_double(x, y, z + 2.0)
    scan = io_dials.scan_from_experiments(loaded.experiments, io_dials.Sampling(1.0, 0.5))
    with pytest.raises(InputError, match="no reflection lies within the scan"):
        io_dials.observations_from_reflections(
            loaded.reflections, np.arange(5), loaded.experiments, scan, io_dials.Selection()
        )

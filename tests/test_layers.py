"""The levels of the package: imports go down, physics runs without DIALS and cctbx."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dials_hybrid"

# Every room of the package; a new one must be given its level here.
LEVELS = {
    "": 0,  # the version
    "electron": 0,
    "slater": 0,
    "noise": 0,
    "records": 0,
    "calls": 0,
    "data": 1,
    "notation": 1,
    "curves": 1,
    "fidelity": 2,
    "valence": 1,
    "freedom": 1,
    "equivalents": 2,
    "torsions": 1,
    "parallel": 2,
    "crystal": 2,
    "absorption": 2,
    "beams": 2,
    "relevance": 2,
    "secant": 2,
    "perturbation": 2,
    "batches": 2,
    "structure_matrix": 2,
    "orientation": 2,
    "propagation": 2,
    "thickness": 2,
    "error_model": 2,
    "losses": 2,
    "nuisance": 2,
    "corrections": 2,
    "restraints": 2,
    "fourier": 2,
    "model_settings": 2,
    "model": 3,
    "linear": 3,
    "kinematic": 3,
    "checkpoint": 4,
    "cross_validation": 4,
    "history": 4,
    "plan": 4,
    "passing": 4,
    "estimates": 4,
    "ending": 4,
    "evidence": 4,
    "work": 4,
    "outcome": 4,
    "refine": 4,
    "uncertainty": 4,
    "thickness_errors": 4,
    "correlations": 4,
    "absolute_structure": 4,
    "validation": 4,
    "accuracy": 4,
    "depth_step": 4,
    "true_thickness": 1,
    "simulate": 4,
    "__main__": 4,
    "io_cctbx": 5,
    "io_text": 5,
    "io_site_symmetry": 5,
    "io_shelx_lines": 5,
    "io_shelx_build": 5,
    "io_elements": 5,
    "io_structure_checks": 5,
    "io_structures": 5,
    "io_settings": 5,
    "io_fixed": 5,
    "io_constraints": 5,
    "io_displacements": 5,
    "io_hydrogen_sites": 5,
    "io_hydrogens": 5,
    "io_riding": 5,
    "io_shelx": 5,
    "io_bonds": 5,
    "io_contacts": 5,
    "io_disorder": 5,
    "io_restraint_entries": 5,
    "io_shelx_restraints": 5,
    "io_restraints": 5,
    "io_restraints_manager": 5,
    "io_measurement": 5,
    "io_dials": 6,
    "io_geometry": 6,
    "io_reflections": 6,
    "io_results": 6,
    "io_cif_loops": 6,
    "io_cif_mtz": 6,
    "io_maps": 6,
    "io_cif_atoms": 6,
    "io_cif_items": 6,
    "io_cif_measurement": 6,
    "io_cif_reflections": 6,
    "io_shelx_atoms": 6,
    "io_shelx_restraints_write": 6,
    "io_shelx_write": 6,
    "io_pets": 6,
    "io_pets_frames": 6,
    "io_pets_read": 6,
    "io_pets_write": 6,
    "report": 6,
    "phil_files": 7,
    "job": 7,
    "choices": 8,
    "ideal_hydrogens": 8,
    "other_settings": 8,
    "api": 9,
    "command_line": 10,
}
PHYSICS = [room for room, level in LEVELS.items() if level <= 4]
PHYSICS_MAY_IMPORT = {"torch", "numpy", "h5py", *sys.stdlib_module_names}
OPTIONAL = {"propagation/kernels.py": {"numba", "llvmlite"}}  # tests/test_bare.py hides them
FOREIGN = ("dials", "dxtbx", "cctbx", "iotbx", "libtbx", "scitbx", "smtbx")


def room_of(path: Path) -> str:
    """Return the room of a source file: the name below the package, without its suffix."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return the full names of all that a file imports, also within functions."""
    names = set()
    # the package that a relative import starts from
    parents = ["dials_hybrid", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            module = [*start, *(node.module.split(".") if node.module else [])]
            names.update(".".join([*module, alias.name]) for alias in node.names)
    return names


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms of the package that a file imports."""
    rooms = set()
    for name in imports_of(path):
        first, *rest = name.split(".")
        if first == "dials_hybrid":
            known = rest and (PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").is_file()
            rooms.add(rest[0] if known else "")
    return rooms - {room_of(path)}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def files(condition):
    """Parametrise over the files of those levels for which the condition holds."""
    chosen = [p for p in FILES if condition(LEVELS.get(room_of(p), 0))]
    return pytest.mark.parametrize(
        "path", chosen, ids=[str(p.relative_to(PACKAGE)) for p in chosen]
    )


def test_every_room_has_a_level():
    rooms = {room_of(path) for path in FILES}
    assert rooms - set(LEVELS) == set(), "give the new room a level in this test"


def test_the_walk_sees_imports():
    """The test itself: absolute, relative, of a parent and within a function."""
    refine = rooms_imported(PACKAGE / "refine.py")
    assert {"losses", "data", "linear", "model"} <= refine
    assert "records" in rooms_imported(PACKAGE / "propagation" / "base.py")
    assert "torch" in {name.split(".")[0] for name in imports_of(PACKAGE / "model.py")}


@files(lambda level: True)
def test_imports_never_go_up(path):
    mine = LEVELS[room_of(path)]
    upward = {room for room in rooms_imported(path) if LEVELS[room] > mine}
    assert upward == set()


def test_rooms_do_not_import_each_other_in_a_circle():
    graph = {room: set() for room in LEVELS}
    for path in FILES:
        graph[room_of(path)] |= rooms_imported(path)
    while graph:
        free = [room for room, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for room in free:
            del graph[room]


@files(lambda level: level <= 4)
def test_physics_imports_torch_numpy_and_h5py_alone(path):
    first = {name.split(".")[0] for name in imports_of(path)}
    allowed = PHYSICS_MAY_IMPORT | OPTIONAL.get(path.relative_to(PACKAGE).as_posix(), set())
    assert first - allowed - {"dials_hybrid"} == set()


@files(lambda level: 5 <= level <= 6)
def test_files_and_reports_do_not_import_the_model(path):
    assert {room for room in rooms_imported(path) if 2 <= LEVELS[room] <= 4} == set()


@files(lambda level: level < LEVELS["command_line"])
def test_phil_stops_at_the_commands(path):
    phil = {name for name in imports_of(path) if "phil" in name.split(".")}
    assert phil == set()


SCRIPT = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {foreign!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
for room in {rooms!r}:
    package = importlib.import_module(f"dials_hybrid.{{room}}" if room else "dials_hybrid")
    for module in pkgutil.iter_modules(getattr(package, "__path__", []) if room else []):
        importlib.import_module(f"{{package.__name__}}.{{module.name}}")
assert not {foreign!r} & {{name.split(".")[0] for name in sys.modules}}

import torch
from dials_hybrid.propagation import DepthGrid, Probe, Splitting

v = torch.tensor([[[0, 1e-3], [1e-3, 0]]], dtype=torch.complex128)
probe = Probe(torch.tensor([0]), torch.tensor([[0, 1]]), torch.ones(1, 2, 1).double())
out = Splitting()(v, torch.zeros(1, 2, 1).double(), probe, DepthGrid(10.0, 25))
print(float(out[0, 1, -1]), float(out[0, :, -1].sum()))
"""


def test_physics_runs_where_dials_and_cctbx_are_not():
    script = SCRIPT.format(foreign=set(FOREIGN), rooms=PHYSICS)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    # sin^2(2 pi V t) = sin^2(pi / 2)
    assert [float(x) for x in done.stdout.split()] == pytest.approx([1, 1], abs=1e-9)

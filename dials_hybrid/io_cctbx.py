"""cctbx structures to and from `Structure`, in the cell of the experiment."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from cctbx import adptbx, crystal, uctbx, xray

from .data import Structure
from .io_elements import form_factor_registry, neutral
from .io_structures import read_structure
from .notation import with_uncertainty
from .records import InputError

__all__ = [
    "as_recorded",
    "cell_difference",
    "format_cell",
    "in_measured_cell",
    "mean_cell",
    "other_hand",
    "read_structure",
    "reconcile",
    "to_structure",
    "update_xray_structure",
    "with_cell",
    "with_uncertainty",
    "write_cell",
]

logger = logging.getLogger("dials.hybrid.io_cctbx")

CELL_WARNING, CELL_ERROR = 1.0, 5.0  # per cent of a length, degrees of an angle
VOLUME_ERROR = 0.05  # relative


def reconcile(xray_structure, experiments, structure_path, expt_path):
    """Return the structure in the mean cell of the experiments, its space group kept.

    The space group must have the Laue group of the experiments' crystals in the same axes; of
    an enantiomorphic pair the structure's member wins. Fractional coordinates and U_cif keep
    their values. Raises InputError when the Laue groups differ, or a cell length by more than
    5 % or an angle by more than 5 degrees; above 1 % or 1 degree it warns.
    """
    for experiment in experiments:
        _require_same_laue_group(xray_structure, experiment.crystal, structure_path, expt_path)
    advice = "reindex the data with dials.reindex, or give the model in the same setting"
    cell = mean_cell(experiments)
    moved = in_measured_cell(xray_structure, cell, structure_path, expt_path, advice)
    group, theirs = xray_structure.space_group(), experiments[0].crystal.get_space_group()
    if group != theirs:
        logger.info(
            "Space group %s of %s is used; %s has %s, of the same Laue group",
            group.info(),
            structure_path,
            expt_path,
            theirs.info(),
        )
    return moved


def in_measured_cell(xray_structure, cell, structure_path, data_path, advice: str):
    """Return the structure in a measured cell (six parameters, A and degree).

    Raises InputError, with the advice, when a cell length differs by more than 5 % or an angle
    by more than 5 degrees; above 1 % or 1 degree it warns.
    """
    old = xray_structure.unit_cell().parameters()
    difference = cell_difference(old, cell)
    cells = (
        f"the cell {format_cell(old)} of {structure_path} and {format_cell(cell)} of {data_path}"
    )
    if difference > CELL_ERROR:
        ratio = xray_structure.unit_cell().volume() / uctbx.unit_cell(cell).volume()
        multiple = max(ratio, 1 / ratio)  # whole where the centring is another
        if abs(multiple - round(multiple)) > VOLUME_ERROR * multiple:
            advice = "no other axes give such volumes; give the model of this very crystal"
        raise InputError(f"{cells} differ too much; {advice}")
    if difference > CELL_WARNING:
        logger.warning("%s differ; the experiment's is used", cells)
    return with_cell(xray_structure, cell)


def _require_same_laue_group(xray_structure, dxtbx_crystal, structure_path, expt_path) -> None:
    mine, theirs = xray_structure.space_group(), dxtbx_crystal.get_space_group()
    laue, their_laue = mine.build_derived_laue_group(), theirs.build_derived_laue_group()
    if laue == their_laue:
        return
    what = (
        f"{structure_path} has space group {mine.info()} (Laue group {_laue_symbol(laue)}), but "
        f"{expt_path} has {theirs.info()} (Laue group {_laue_symbol(their_laue)})"
    )
    lower = all(laue.contains(op) for op in their_laue)
    cells = (x.unit_cell() for x in (xray_structure, dxtbx_crystal.get_crystal_symmetry()))
    if lower and cell_difference(*(c.parameters() for c in cells)) < CELL_ERROR:
        raise InputError(f'{what}; run dials.reindex with space_group="{mine.info()}" on the data')
    raise InputError(
        f"{what}; reindex the data with dials.reindex, or give the model in the same setting"
    )


def _laue_symbol(laue_group) -> str:
    return str(laue_group.info()).removeprefix("P ")


def mean_cell(experiments) -> tuple[float, ...]:
    """Return the mean of the experiments' cell parameters, A and degree."""
    cells = [e.crystal.get_unit_cell().parameters() for e in experiments]
    return tuple(sum(values) / len(cells) for values in zip(*cells, strict=True))


def cell_difference(first, second) -> float:
    """Return the largest difference of two cells: lengths in per cent, angles in degree."""
    lengths = [abs(a / b - 1) * 100 for a, b in zip(first[:3], second[:3], strict=True)]
    return max(lengths + [abs(a - b) for a, b in zip(first[3:], second[3:], strict=True)])


def format_cell(cell) -> str:
    """Return a cell as text, (a, b, c, alpha, beta, gamma)."""
    lengths, angles = (f"{x:.4f}" for x in cell[:3]), (f"{x:.2f}" for x in cell[3:])
    return f"({', '.join([*lengths, *angles])})"


def with_cell(structure, unit_cell, moved_atoms: Iterable[int] = ()):
    """Return the structure in another unit cell, averaged over the space group's symmetry.

    `unit_cell` is cctbx's, or six parameters in A and degree. Fractional coordinates, U_iso and
    U_cif keep their values, and atoms their site symmetry, but for `moved_atoms`, by number, which
    get that of the place where they are now.
    """
    if not hasattr(unit_cell, "parameters"):
        unit_cell = uctbx.unit_cell(unit_cell)
    symmetry = crystal.symmetry(
        unit_cell=structure.space_group().average_unit_cell(unit_cell),
        space_group=structure.space_group(),
    )
    moved, again = xray.structure(crystal_symmetry=symmetry), set(moved_atoms)
    table = structure.site_symmetry_table()
    for i, sc in enumerate(structure.scatterers()):
        if sc.flags.use_u_aniso():
            u_cif = adptbx.u_star_as_u_cif(structure.unit_cell(), sc.u_star)
            sc = sc.customized_copy(u=adptbx.u_cif_as_u_star(symmetry.unit_cell(), u_cif))
        moved.add_scatterer(sc, site_symmetry_ops=None if i in again else table.get(i))
    return moved


def write_cell(block, symmetry, digits: int) -> None:
    """Write the cell of a crystal symmetry to a CIF block, to so many decimals.

    cctbx writes three, fewer than a cell is known to.
    """
    cell = symmetry.as_cif_block(format="coreCIF", numeric_format=f"%.{digits}f")
    for key in [key for key in cell.keys() if key.startswith("_cell_")]:
        block[key] = cell[key]


def as_recorded(xray_structure, structure: Structure):
    """Return a cctbx structure with cell, sites, U and occupancies of a record, to all digits."""
    return update_xray_structure(with_cell(xray_structure, structure.cell.tolist()), structure)


def to_structure(xray_structure) -> Structure:
    """Return the `Structure` record of a cctbx xray.structure, ions taken as neutral atoms."""
    scatterers = xray_structure.scatterers()
    names = [neutral(sc.scattering_type) for sc in scatterers]
    elements = sorted(set(names))
    operators = list(xray_structure.space_group())
    a, b = _form_factor_tables(elements)
    anisotropic = [bool(sc.flags.use_u_aniso()) for sc in scatterers]
    return Structure(
        cell=_tensor(xray_structure.unit_cell().parameters()),
        hall_symbol=xray_structure.space_group().type().hall_symbol(),
        sym_rot=_tensor([op.r().as_double() for op in operators]).reshape(-1, 3, 3),
        sym_trans=_tensor([op.t().as_double() for op in operators]),
        site=_tensor([sc.site for sc in scatterers]),
        u_iso=_tensor([0.0 if sc.flags.use_u_aniso() else sc.u_iso for sc in scatterers]),
        u_star=_tensor([sc.u_star if sc.flags.use_u_aniso() else (0.0,) * 6 for sc in scatterers]),
        anisotropic=torch.tensor(anisotropic),
        occ=_tensor([sc.occupancy for sc in scatterers]),
        weight=_tensor([sc.weight_without_occupancy() for sc in scatterers]),
        site_projector=_site_projectors(xray_structure),
        adp_projector=_adp_projectors(xray_structure),
        type=torch.tensor([elements.index(n) for n in names]),
        ff_a=a,
        ff_b=b,
        labels=tuple(sc.label for sc in scatterers),
        elements=tuple(elements),
    )


def _tensor(values) -> torch.Tensor:
    # not .to(): numbers without a type would pass through float32
    rows = [list(v) if isinstance(v, tuple) else v for v in values]
    return torch.tensor(rows, dtype=torch.float64)


def _form_factor_tables(elements):
    registry = form_factor_registry(elements)
    gaussians = [registry.gaussian(e) for e in elements]
    width = max(g.n_terms() for g in gaussians) + 1
    a = torch.zeros(len(elements), width, dtype=torch.float64)
    b = torch.zeros(len(elements), width, dtype=torch.float64)
    for i, g in enumerate(gaussians):
        n = g.n_terms()
        a[i, :n] = torch.tensor(tuple(g.array_of_a()), dtype=torch.float64)
        b[i, :n] = torch.tensor(tuple(g.array_of_b()), dtype=torch.float64)
        a[i, n] = g.c()
    return a, b


def _site_projectors(xray_structure) -> torch.Tensor:
    """(A, 3, 3): the rotation part of the special position operator projects site shifts."""
    table = xray_structure.site_symmetry_table()
    n = xray_structure.scatterers().size()
    return _tensor([table.get(i).special_op().r().as_double() for i in range(n)]).reshape(-1, 3, 3)


def _adp_projectors(xray_structure) -> torch.Tensor:
    """(A, 6, 6): averaging over the site symmetry projects changes of u_star."""
    table = xray_structure.site_symmetry_table()
    columns = []
    for i in range(xray_structure.scatterers().size()):
        unit = [tuple(float(j == k) for j in range(6)) for k in range(6)]
        columns.append([table.get(i).average_u_star(u) for u in unit])
    return torch.tensor(columns, dtype=torch.float64).transpose(1, 2).contiguous()


def update_xray_structure(xray_structure, structure: Structure):
    """Return a copy of a cctbx structure with the sites and ADPs of `structure`."""
    copy = xray_structure.deep_copy_scatterers()
    for i, sc in enumerate(copy.scatterers()):
        sc.site = tuple(structure.site[i].tolist())
        if bool(structure.anisotropic[i]):
            sc.u_star = tuple(structure.u_star[i].tolist())
        else:
            sc.u_iso = float(structure.u_iso[i])
        sc.occupancy = float(structure.occ[i])
    return copy


def other_hand(xray_structure, structure: Structure):
    """Return the mirror image of a structure, as cctbx xray.structure and as `Structure`.

    Of an enantiomorphic pair the space group becomes the other member. The sites' allowed
    shifts and the displacement parameters, which inversion leaves alone, stay.
    """
    moved = update_xray_structure(xray_structure, structure).change_hand()
    operators = list(moved.space_group())
    return moved, structure.replace(
        hall_symbol=moved.space_group().type().hall_symbol(),
        sym_rot=_tensor([op.r().as_double() for op in operators]).reshape(-1, 3, 3),
        sym_trans=_tensor([op.t().as_double() for op in operators]),
        site=_tensor([sc.site for sc in moved.scatterers()]),
    )

"""The HTML page: the templates and what goes into them.

The page is one file that works offline: figures are inline SVG, the style sheet is
inline, there is no script. Agreement factors are given in per cent.
"""

from __future__ import annotations

from importlib import resources

import jinja2

from ..data import Problem, Result
from ..records import replacing
from . import setting_tables, structure_tables, tables, words
from .arrays import Arrays, arrays
from .figures import draw_all

_UNFOLDED = 30  # bonds or angles; a longer table is folded
_PAGE = "report.html.jinja"


def write_html(path, problem: Problem, result: Result, contract: dict) -> None:
    """Write the page; an existing file is replaced only when all is drawn."""
    text = _render(problem, contract, arrays(problem, result))
    with replacing(path) as temporary:
        # a file name may hold bytes that are no UTF-8
        temporary.write_text(text, encoding="utf-8", errors="replace")


def _asset(name: str) -> str:
    """Return the text of a file that comes with the package."""
    file = resources.files("dials_hybrid").joinpath("assets").joinpath(name)
    return file.read_text(encoding="utf-8")


def _render(problem: Problem, contract: dict, data: Arrays) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    return environment.get_template(_PAGE).render(
        contract=contract,
        css=_asset("report.css"),
        figures=draw_all(data),
        percent=words.percent,
        sentence=words.sentence,
        outcome=words.outcome(contract),
        files=tables.file_names(problem),
        n_sweeps=len(data.sweeps),
        agreement=tables.agreement(contract),
        conditions=tables.conditions(contract, data),
        thickness=tables.thickness(data),
        corrections=tables.corrections(contract),
        worst=tables.worst(data),
        condition=tables.condition(contract),
        **_of_structure(contract),
        verdict=(contract["absolute_structure"] or {}).get("verdict"),
        candidates=setting_tables.candidates(contract),
        chosen=setting_tables.chosen(contract),
        settings=setting_tables.settings(contract),
        absolute_structure=setting_tables.absolute_structure(contract),
    )


def _of_structure(contract: dict) -> dict:
    """Return what the section on the structure shows."""
    return {
        "sites": structure_tables.sites(contract),
        "displacements": structure_tables.displacements(contract),
        "bonds": structure_tables.geometry(contract["bonds"], "length", digits=4),
        "angles": structure_tables.geometry(contract["angles"], "angle", digits=2),
        "charges": structure_tables.charges(contract),
        "dipoles": structure_tables.dipoles(contract),
        "restraints": structure_tables.restraints(contract),
        "peaks": structure_tables.peaks(contract),
        "unfolded": _UNFOLDED,
    }

"""Whether a CIF is what the dictionaries that it names say: names, types, ranges, codes, keys.

`cif_dictionary.json` holds what they say of the items used here, and where they are from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

RULES = json.loads((Path(__file__).parent / "cif_dictionary.json").read_text(encoding="utf-8"))
ITEMS, LOOPED = RULES["items"], RULES["looped"]
ABSENT = (".", "?")
REACH = 3  # s.u. by which a measured value may leave its range
PATTERNS = {
    "Real": r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?(\(\d+\))?",
    "Integer": r"[+-]?\d+",
    "Word": r"\S+",
    "Symop": r"\d+(_\d{3})?",
    "Date": r"\d{4}-\d\d-\d\d",
    "Text": r"[\s\S]*\S[\s\S]*",
}


def problems(block) -> list[str]:
    """Return what is wrong with a data block of iotbx, in words; nothing if it is right."""
    return [*_names(block), *_values(block), *_keys(block), *_links(block), *_declared(block)]


def values(block, name: str) -> list[str]:
    """Return the values of an item, one unless it is looped."""
    found = block[name]
    return [found] if isinstance(found, str) else list(found)


def number(text: str) -> tuple[float, float]:
    """Return a number and its s.u., which is zero where there is none."""
    value, _, su = text.rstrip(")").partition("(")
    mantissa = re.split("[eE]", value)[0]
    digits = len(mantissa.partition(".")[2])
    return float(value), int(su or 0) * 10.0**-digits


def _names(block) -> Iterator[str]:
    yield from (f"{name}: in no dictionary" for name in block.keys() if name not in ITEMS)


def _known(block) -> list[str]:
    return [name for name in block.keys() if name in ITEMS]


def _values(block) -> Iterator[str]:
    for name in _known(block):
        rule, found = ITEMS[name], values(block, name)
        errors = [0.0] * len(found)
        if isinstance(rule.get("su"), str) and rule["su"] in block:
            errors = [number(text)[0] for text in values(block, rule["su"])]
        for text, error in zip(found, errors, strict=True):
            if wrong := _wrong(rule, text, error):
                yield f"{name} {text}: {wrong}"
                break


def _wrong(rule: dict, text: str, error: float) -> str | None:
    """Return what is wrong with a value; `error` is its s.u. if another item has that."""
    if "enumeration" in rule:
        return None if text in (*rule["enumeration"], "?") else "no such code"
    if text in ABSENT:
        return None
    if not re.fullmatch(PATTERNS[rule["contents"]], text):
        return f"not of type {rule['contents']}"
    if rule["contents"] not in ("Real", "Integer"):
        return None
    value, su = number(text)
    if su and rule.get("su") is not True:
        return "may have no s.u."
    low, high = (rule.get("range") or ":").split(":")
    reach = REACH * max(su, error)
    below, above = low and value < float(low) - reach, high and value > float(high) + reach
    return f"not within {rule['range']}" if below or above else None


def _keys(block) -> Iterator[str]:
    """What is looped though it is single, lacks its key, repeats it, or is of two categories."""
    for loop in block.loops.values():
        names = [name for name in loop.keys() if name in ITEMS]
        categories = {ITEMS[name]["category"] for name in names}
        if len(categories) != 1:
            yield f"a loop of {', '.join(sorted(categories)) or 'nothing known'}"
            continue
        (category,) = categories
        if category not in LOOPED:
            yield f"{category}: looped"
            continue
        # an operator that is left out is the identity
        key = [name for name in LOOPED[category] if name in names]
        if [n for n in LOOPED[category] if n not in names and "site_symmetry" not in n]:
            yield f"{category}: without its key"
        rows = list(zip(*(loop[name] for name in key), strict=True))
        if len(set(rows)) != len(rows):
            yield f"{category}: a key stands twice"


def _links(block) -> Iterator[str]:
    for name in _known(block):
        to = ITEMS[name].get("link")
        if to and set(values(block, name)) - set(values(block, to) if to in block else ()):
            yield f"{name}: values that {to} has not"


def _declared(block) -> Iterator[str]:
    """Dictionaries that are used and not named, or named with another version."""
    stated = dict(
        zip(
            values(block, "_audit_conform_dict_name"),
            values(block, "_audit_conform_dict_version"),
            strict=True,
        )
    )
    used = {ITEMS[name].get("dictionary", "core") for name in _known(block)}
    needed = {d["name"]: d["version"] for k, d in RULES["dictionaries"].items() if k in used}
    if missing := {n: v for n, v in needed.items() if stated.get(n) != v}:
        yield f"not declared: {missing}"

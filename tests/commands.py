"""What the tests of dials.hybrid_refine share: its outputs, and how it refuses."""

import pytest

from dials_hybrid.command_line import hybrid_refine
from dials_hybrid.records import InputError

OUTPUTS = (
    "hybrid_refined.expt",
    "hybrid_refined.refl",
    "hybrid_refined.cif",
    "hybrid_refined.mtz",
    "hybrid_refined.h5",
    "dials.hybrid_refine.html",
    "dials.hybrid_refine.json",
    "dials.hybrid_refine.log",
)
PETS_OUTPUTS = OUTPUTS[2:]  # no DIALS files to write back to


def failure(*arguments) -> str:
    """Run with bad input; return the message, after seeing that it is one line with status 1."""
    with pytest.raises(SystemExit) as caught:
        hybrid_refine.run([str(a) for a in arguments])
    message = str(caught.value.code)
    assert caught.value.code not in (0, None)
    assert "\n" not in message and "Traceback" not in message
    return message


def refused(load, paths) -> str:
    """Return the message of the InputError that loading must raise."""
    with pytest.raises(InputError) as caught:
        load(paths)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message

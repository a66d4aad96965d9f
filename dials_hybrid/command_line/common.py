"""What the command-line programs share: parsing, error reports, logging and file checks."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import dials.util.log
import libtbx.phil
from dials.util import make_sys_exit_red
from dials.util.options import ArgumentParser
from dials.util.version import dials_version
from libtbx.utils import Sorry

from .. import __version__, absorption
from ..records import InputError, require_file

logger = logging.getLogger("dials.hybrid.command_line")

PHIL_ENDINGS = (".phil", ".param", ".params", ".eff", ".def")
LOGGERS = ("dials", "dxtbx", "xfel", "py.warnings")


def reports_input_errors(run):
    """Make a `run` function leave with status 1 and one message where the user can act.

    Programming errors keep their traceback; they do not go to the DIALS developers' address.
    """

    @functools.wraps(run)
    def wrapped(*args, **kwargs):
        """Run, and leave as said above."""
        with make_sys_exit_red():
            try:
                return run(*args, **kwargs)
            except InputError as error:
                sys.exit(str(error))
            except Sorry as error:
                sys.exit(_one_line(error))
            except OSError as error:
                if error.strerror is None:
                    raise
                where = f"{error.filename}: " if error.filename else ""
                sys.exit(f"{where}{error.strerror}")
            except MemoryError:
                sys.exit("there is not enough memory; ask for fewer beams or a smaller problem")
            except KeyboardInterrupt:
                sys.exit("interrupted; no output was written")

    return wrapped


class Parser(ArgumentParser):
    """The DIALS parser, with errors that name what was probably meant."""

    def error(self, message: str):
        """Raise InputError, where argparse would leave with status 2."""
        raise InputError(message)

    def parse(self, args: Sequence[str] | None = None):
        """Return (parameters, options, other arguments), the last being mostly file names.

        Raises InputError for parameters that do not exist, values that cannot be read and
        options that are not known. Without any argument the help is printed first.
        """
        args = sys.argv[1:] if args is None else [str(a) for a in args]
        if not args:
            self.print_help()
            raise InputError("no input was given; the help above tells what is needed")
        check_parameters(self.system_phil, args)
        params, options, others = self.parse_args(args, return_unhandled=True)
        # lines of a file given by --phil come out here when they were not understood
        check_parameters(self.system_phil, others)
        for arg in others:
            if arg.startswith("-"):
                known = [o for action in self._actions for o in action.option_strings]
                raise InputError(f"there is no option {arg}{_meant(arg, known)}")
        return params, options, others


def check_parameters(phil: libtbx.phil.scope, args: Sequence[str]) -> None:
    """Look through the PHIL parameters and PHIL files among command-line arguments.

    DIALS's own parser drops some mistakes silently and answers others with a traceback. Raises
    InputError, with the nearest name that exists, on the first mistake.
    """
    interpreter = phil.command_line_argument_interpreter()
    paths = [definition.path for definition in phil.all_definitions()]
    sources = []
    for arg in args:
        if arg.endswith(PHIL_ENDINGS) and "=" not in arg:
            sources.append(_parse_file(arg))
        elif "=" in arg and not arg.startswith("-"):
            sources.append(_parse_definition(interpreter, arg, paths))
    defaults = {item.path: item.object.extract() for item in phil.all_definitions()}
    fetched, unused = phil.fetch(sources=sources, track_unused_definitions=True)
    for item in unused:
        raise InputError(f"there is no parameter {item.path}{_meant(item.path, paths)}")
    try:
        for definition in fetched.all_definitions():
            value = definition.object.extract()
            _refuse_infinite(definition.path, value)
            if value is None:
                _refuse_none(definition.object, definition.path, defaults[definition.path])
    except (Sorry, RuntimeError) as error:
        raise InputError(_one_line(error)) from error


def _refuse_infinite(path: str, value) -> None:
    """PHIL lets NaN pass every limit."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
        raise InputError(f"{path} must be finite")


def _refuse_none(definition, path: str, default) -> None:
    """PHIL lets None pass for any number; where it means something the help says so."""
    if isinstance(default, int | float) and "None" not in (definition.help or ""):
        raise InputError(f"{path}=None has no meaning; leave it out for {default}, the default")


def _parse_file(name: str):
    require_file(name)
    try:
        return libtbx.phil.parse(file_name=name)
    except (Sorry, RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: not a PHIL file ({_one_line(error)})") from error


def _parse_definition(interpreter, arg: str, paths: Sequence[str]):
    name = arg.split("=")[0].strip()
    try:
        # the DIALS parser will print the same remarks again
        with contextlib.redirect_stdout(io.StringIO()):
            return interpreter.process_arg(arg=arg)
    except Sorry as error:
        matching = [path for path in paths if name in path]
        if not name or len(matching) > 8:
            text = f"{arg}: there is no such parameter; -h -h lists what there is"
            raise InputError(text) from error
        if not matching:
            raise InputError(f"there is no parameter {name}{_meant(name, paths)}") from error
        if len(matching) > 1 and name not in paths:
            raise InputError(f"{arg}: {name} may be any of {', '.join(matching)}") from error
        raise InputError(f"{arg}: cannot be read as a parameter and its value") from error


def _meant(name: str, known: Sequence[str]) -> str:
    """Return a hint at the known name that comes nearest."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        # the last part alone, for parameters given without their scope
        by_last = {path.rsplit(".", 1)[-1]: path for path in reversed(known)}
        last = difflib.get_close_matches(name.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.6)
        near = [by_last[word] for word in last]
    return f"; did you mean {near[0]}?" if near else "; -h -h lists what there is"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def absorption_model(params) -> absorption.Absorption:
    """Return the model that the PHIL scope `absorption` describes."""
    if params.model == "proportional":
        return absorption.Proportional(params.ratio)
    # PHIL reads the word none as None
    return absorption.MODELS[params.model or "none"]()


def check_outputs(outputs: Mapping[str, str | None], inputs: Sequence[str] = ()) -> None:
    """See, before the long work, that every output (parameter name: path) can be written.

    Raises InputError where one has no folder or no permission, is a folder, has an ending that
    DIALS or Jana does not know, would overwrite an input, or has the same path as another.
    """
    taken = {Path(path).resolve(): f"the input {path}" for path in inputs}
    for name, path in outputs.items():
        if path is None:
            continue
        path = Path(path)
        if not path.parent.is_dir():
            raise InputError(f"{name}={path}: there is no folder {path.parent}; make it first")
        if path.is_dir():
            raise InputError(f"{name}={path}: this is a folder; give the name of a file")
        if name.endswith("experiments") and path.suffix not in (".expt", ".json"):
            raise InputError(f"{name}={path}: the name must end in .expt or .json")
        if name.endswith("pets") and path.suffix != ".cif_pets":
            raise InputError(f"{name}={path}: the name must end in .cif_pets")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"{name}={path}: no permission to write in {path.parent.resolve()}")
        if path.resolve() in taken:
            raise InputError(f"{name}={path}: this is also {taken[path.resolve()]}")
        taken[path.resolve()] = name


@contextlib.contextmanager
def logging_to(logfile: str | None, verbosity: int = 0):
    """Log to the terminal and a file while the body runs.

    The handlers go again afterwards, so that several runs in one process do not repeat lines.
    """
    before = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    try:
        dials.util.log.config(verbosity, logfile)
        logger.info("dials_hybrid %s, %s", __version__, dials_version())
        yield
    finally:
        for name, handlers in before.items():
            own = logging.getLogger(name)
            for handler in [h for h in own.handlers if h not in handlers]:
                own.removeHandler(handler)
                handler.close()


def log_parameters(parser: ArgumentParser) -> None:
    """Log the parameters that differ from their defaults."""
    changed = parser.diff_phil.as_str().strip()
    if changed:
        logger.info("The following parameters have been modified:\n\n%s\n", changed)


def log_citations(citations: Sequence[str]) -> None:
    """Log the papers that a publication of the results should cite."""
    logger.info("Please cite:\n%s", "\n".join(f"  {citation}" for citation in citations))

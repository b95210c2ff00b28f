"""Arguments into dataclasses: what may be set follows from what exists, and every mistake is a sentence."""

import inspect
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from openjepa.errors import InputError
from openjepa.files import expanded

# Options that are followed by words, not by files; and those that are followed by several words or numbers.
_WORDS = {"--only", "--suite", "--device", "--recipe", "--objectives"}
_SEVERAL = {"--only", "--scene-count", "--image-size"}


def parse(kind: Any, verb: str, arguments: list[str], default: Any = None) -> Any:
    import tyro

    program, description = f"openjepa {verb}", _plain((inspect.getdoc(kind) or "").split("\n\nAttributes:")[0])
    if {"-h", "--help"} & set(arguments):
        kind, default = _described(kind, default), None
        width = shutil.get_terminal_size().columns
        # Tyro joins lines that begin with a letter.
        parts = (textwrap.fill(part, width, subsequent_indent=" ") for part in description.split("\n\n"))
        description = "\n\n".join(parts)
    try:
        if default is None:
            return tyro.cli(kind, prog=program, args=arguments, description=description)
        return tyro.cli(kind, prog=program, args=arguments, description=description, default=default)
    except ValueError as error:  # a setting's own check
        raise InputError(str(error)) from error


def _plain(docstring: str) -> str:
    """A docstring for who runs the program: without the marks of code and the names of files of code."""
    return re.sub(r"\s*\([\w/]+\.py\)", "", docstring.replace("``", ""))


def _described(kind: Any, default: Any) -> Any:
    """The command line's dataclass as --help is to show it: docstrings in plain words, and defaults that say much."""
    import tyro

    said = tyro.conf.arg(help_behavior_hint=lambda told: "" if told in ("", "None") else f"(default: {told})")
    hints, columns = get_type_hints(kind, include_extras=True), []
    for one in fields(kind):
        hint, value = hints[one.name], one.default if default is None else getattr(default, one.name)
        if is_dataclass(value):
            hint = _described(type(value), value)
            value = hint()
        else:
            hint = Annotated[hint, said]
        columns.append((one.name, hint) if value is MISSING else (one.name, hint, field(default=value)))
    made = make_dataclass(kind.__name__, columns, frozen=True, kw_only=True)
    made.__doc__ = _plain(inspect.getdoc(kind) or "")
    return made


def unchecked(kind: Any, default: Any) -> tuple[Any, Any]:
    """The command line's dataclass and its default, with settings that have types and no checks."""
    hints = get_type_hints(kind, include_extras=True)
    values, columns = {}, []
    for one in fields(kind):
        hint, value = hints[one.name], getattr(default, one.name)
        if is_dataclass(value):
            inner = get_type_hints(type(value))
            bare = make_dataclass(hint.__name__, [(part.name, inner[part.name]) for part in fields(value)])
            hint, value = bare, bare(**{part.name: getattr(value, part.name) for part in fields(value)})
        columns.append((one.name, hint))
        values[one.name] = value
    bare = make_dataclass(kind.__name__, columns)
    return bare, bare(**values)


def read_saved(path: Path | None) -> Any:
    """The experiment in a file that was named with --experiment, if any."""
    from openjepa.experiment import Experiment

    if path is None:
        return None
    path = expanded(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return Experiment.from_json(path.read_text(), origin=path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error


def share_of_bad(given: float | None, experiment: Any) -> float:
    """The share of the images that may be unreadable: as given with --bad-images, else an experiment's, else the usual.

    Raises:
        InputError: it is no share.
    """
    from openjepa.assessment.extraction import BAD_IMAGES

    if given is None:
        return BAD_IMAGES if experiment is None else experiment.training.bad_images
    if not 0 <= given <= 1:
        raise InputError(f"--bad-images is a share from 0 to 1, got {given}")
    return given


def from_anywhere(verb: str, arguments: list[str], named: Iterable[str | Path | None]) -> str:
    """The command with the files and folders that ``named`` names written in full, so that any folder will do.

    A word or number after an option that takes no file stays as it is, though a folder may be called so.

    Raises:
        InputError: a path begins with the home folder of nobody.
    """
    from openjepa.data.sources import in_full

    whole = {
        str(Path(one)): str(expanded(one).resolve()) if isinstance(one, Path) else in_full(one)
        for one in named
        if one is not None
    }
    words, option = ["openjepa", verb], ""
    for argument in arguments:
        before, value = "", argument
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            option, before = name.replace("_", "-"), name + equals
            if not equals:
                words.append(argument)
                continue
        plain = option in _WORDS or (option != "" and value.isdecimal())
        words.append(before + (value if plain else whole.get(str(Path(value))) or value))
        option = option if option in _SEVERAL else ""
    return shlex.join(words)

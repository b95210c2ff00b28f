"""Folders that are either complete or not there, and the two kinds of file that they hold."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openjepa.errors import InputError
from openjepa.files import sync


@contextmanager
def whole_folder(
    directory: Path,
    replaceable: Callable[[Path], str | None] | None = None,
    others: Callable[[Path], Iterable[Path]] = lambda folder: (),
) -> Iterator[Path]:
    """A temporary folder beside ``directory`` that takes its name when the block ends well, and vanishes otherwise.

    Args:
        directory: the folder to make; its parents are made too.
        replaceable: says why an existing ``directory`` may not be replaced, or None where it may. Without it nothing
            that exists is replaced.
        others: what in a folder that is replaced is somebody else's, and is moved into the new one.

    Raises:
        InputError: the folder exists and may not be replaced, or cannot be written.
    """
    directory = Path(directory)
    directory = directory.resolve() if directory.is_symlink() else directory.absolute()
    _refuse(directory, replaceable)
    draft = directory.parent / f".{directory.name}.{secrets.token_hex(4)}.part"
    try:
        draft.mkdir(parents=True)
        try:
            yield draft
            for file in draft.rglob("*"):
                sync(file)
            sync(draft)
            _refuse(directory, replaceable)
            _take_place(draft, directory, others)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error}. Choose another folder or free some space.") from error


def sweep(directory: Path, others: Callable[[Path], Iterable[Path]]) -> None:
    """Remove what was left beside ``directory``, which is there, by writers that were killed; for the one writer."""
    if directory.is_dir():
        for left in directory.parent.glob(f".{directory.name}.*"):
            if left.suffix == ".old":
                _move(others(left), directory)
            if left.suffix in (".part", ".old"):
                shutil.rmtree(left, ignore_errors=True)


def _move(entries: Iterable[Path], directory: Path) -> None:
    """Move them into the folder; what is there already stays."""
    for entry in entries:
        if not os.path.lexists(directory / entry.name):
            with suppress(FileNotFoundError):  # its owner was quicker
                entry.rename(directory / entry.name)


def _refuse(directory: Path, replaceable: Callable[[Path], str | None] | None) -> None:
    if not os.path.lexists(directory):
        return
    reason = "it exists already" if replaceable is None else replaceable(directory)
    if reason is not None:
        raise InputError(f"will not write {directory}: {reason}. Choose another folder or remove this one.")


def _take_place(draft: Path, directory: Path, others: Callable[[Path], Iterable[Path]]) -> None:
    old = draft.with_suffix(".old")
    if directory.exists():
        directory.rename(old)
    try:
        draft.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    if old.exists():
        _move(others(old), directory)
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; InputError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold a JSON object and holds a {type(content).__name__}.")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` as safetensors, marked as PyTorch's (transformers asks for the mark), readable as any file."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(whole, path, {"format": "pt"})
    except SafetensorError as error:  # which is no OSError, whatever the disk said
        raise OSError(str(error)) from error
    # safetensors makes files that only their owner may read; a folder to hand over keeps to the user's own habit.
    path.chmod(path.parent.stat().st_mode & 0o666)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; InputError where it cannot be read."""
    if not path.is_file():
        raise InputError(f"{path} is not there.")
    try:
        # Copies, since the file's own pages would change under the weights when somebody rewrites it in place.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}). Copy or download it again.") from error

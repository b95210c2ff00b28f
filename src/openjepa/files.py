"""Paths as people type them, and files that are there whole or not at all, whatever stops the one who writes them."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from openjepa.errors import InputError

_DAY = 24 * 3600.0
# What drives say (of virtual machines, of networks) on which a folder cannot be flushed.
_NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}
# What this process has locked.
_HELD: dict[Path, IO[str]] = {}


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` or ``~user`` at its beginning written out.

    Raises:
        InputError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{path} begins with the home folder of a user who is not known here: write the path in full (or ./{path}, "
            f"where ~ belongs to the name)"
        ) from error


def cache_folder() -> Path:
    """Where downloads and copies for speed are kept: OPENJEPA_CACHE, else ~/.cache/openjepa.

    Raises:
        InputError: neither is known, as for a user without a home folder.
    """
    if chosen := os.environ.get("OPENJEPA_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openjepa"
    except RuntimeError as error:
        raise InputError(
            "this user has no home folder in which downloads and copies could be kept: set OPENJEPA_CACHE to a folder "
            "for them"
        ) from error


@cache
def _let_forks_go() -> None:
    """A forked process holds nothing: while it had the files open, the locks would outlive the one who took them."""
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for file in _HELD.values():
        file.close()
    _HELD.clear()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft beside ``path`` to write; it takes its place when the block ends well, and vanishes otherwise.

    Raises:
        OSError: the draft cannot be put in place.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield draft
        sync(draft)  # so that a power cut leaves the old file or the new one
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def moved_aside(path: Path, mark: str) -> Path:
    """Give a file or folder its name with ``mark`` and the first number that nobody has; returns the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}{mark}-{number}")).exists():
        number += 1
    return path.rename(aside)


def sync(path: Path) -> None:
    """Ask for a file or folder to be on the disk, so that a rename never names what a power cut has emptied."""
    if os.name == "nt":  # which has no handle of a folder, and none for reading that can be flushed
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, which may be larger than the memory that is left."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def forgotten(path: Path) -> bool:
    """Whether a file is there that nobody has written to for a day, as what a kill has left, and no living writer."""
    try:
        return time.time() - path.stat().st_mtime > _DAY
    except OSError:
        return False


def sweep_drafts(folder: Path, names: str = "*") -> None:
    """Remove the :func:`forgotten` drafts of :func:`whole_file` in ``folder`` for files called ``names``, a pattern."""
    for draft in folder.glob(f".{names}.{'[0-9a-f]' * 8}.part"):
        if forgotten(draft):
            with contextlib.suppress(OSError):  # somebody else's
                draft.unlink()


def names_in(folder: Path) -> set[str]:
    """The names of what is in a folder, but for drafts of :func:`whole_file` that a kill has left."""
    return {path.name for path in folder.iterdir() if not (path.name[0] == "." and path.suffix == ".part")}


def write_whole(path: Path, text: str) -> None:
    """A file of text, UTF-8, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def check_room(wanted: int, folder: Path, *, what: str, instead: str = "") -> None:
    """Refuse to fill a disk.

    Args:
        wanted: bytes to be written, about.
        folder: where; it need not be there yet.
        what: is to be written, as the subject of the sentence.
        instead: what else the user can do.

    Raises:
        InputError: there is no room for them.
    """
    standing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(standing).free
    if free < 1.1 * wanted:
        raise InputError(
            f"{what} would take about {wanted / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free there: "
            f"set OPENJEPA_CACHE to a folder with more room{instead and f', or {instead}'}"
        )


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds the file ``path`` while it is inside, as far as the system can tell; to ``wait``
    is to come in when nobody else is.

    A process that holds it already may enter again. The lock ends with the process, whatever ends it. Where there are
    no locks (Windows, some network drives) everybody holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    _let_forks_go()
    own = path.resolve()
    if own in _HELD:
        yield True
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # a drive without locks
            yield True
            return
        _HELD[own] = file
        try:
            yield True
        finally:
            del _HELD[own]
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would not end it while another process has a copy

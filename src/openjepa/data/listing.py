"""Which files lie below a folder: found in one pass, held in little memory, and remembered while nothing changes.

A folder of a million images takes seconds to walk, on a network drive minutes. The names that were found are therefore
kept in the cache folder, with the times of every folder: adding, removing or renaming a file changes its folder's, so a
look at the folders shows whether the list still holds. Times that a program sets back don't mislead it: the time of the
folder's own record (``st_ctime``) can't be set. Nothing but names is kept; what a file holds, and its size, is read
anew each time.
"""

import contextlib
import hashlib
import itertools
import json
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Int64

from openjepa.data.base import NO_IMAGE, Skipped, printable
from openjepa.data.opening import IMAGE_SUFFIXES, looks_like_image
from openjepa.errors import InputError
from openjepa.files import cache_folder, whole_file

# A folder with fewer files is walked again each time: that takes hardly longer than to ask whether it has changed.
REMEMBERED_FROM = 10_000
# A folder that changed so shortly before it was read may change again without a new time (seconds).
_SETTLED = 2.0
_FORMAT = 4
_RAW = "a camera's raw file, which is not read: convert it to JPEG or TIFF"
_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srw", ".orf", ".raf", ".rw2", ".pef")

# A folder with its last separator ("" for the root), the number of its first file, and of the one after its last.
Run = tuple[str, int, int]


class Files:
    """Paths relative to a folder, sorted, as a few arrays: a million take some ten megabytes.

    Args:
        folders: of each run of files, their folder with its last separator ("" for the root).
        begins: the number of each run's first file.
        names: the files' names in their folders, one after the other.
        ends: where each name ends.
    """

    def __init__(
        self, folders: list[str], begins: Int64[np.ndarray, "r"], names: bytes, ends: Int64[np.ndarray, "n"]
    ) -> None:
        self.folders, self._begins, self.names, self._ends = folders, begins, names, ends

    @classmethod
    def of_runs(cls, runs: Iterable[tuple[str, list[str]]]) -> "Files":
        """Folders, each with names that follow one another in it."""
        names = bytearray()
        lengths, begins, folders = [], [], []
        for folder, run in runs:
            begins.append(len(lengths))
            folders.append(folder)
            encoded = [os.fsencode(name) for name in run]
            names += b"".join(encoded)
            lengths.extend(map(len, encoded))
        return cls(folders, np.array(begins, np.int64), bytes(names), np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Files":
        """These paths, in their order."""
        split = (path.rpartition(os.sep) for path in paths)
        parts = ((folder + separator, name) for folder, separator, name in split)
        grouped = itertools.groupby(parts, lambda part: part[0])
        return cls.of_runs((folder, [name for _, name in run]) for folder, run in grouped)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"file {index} of {len(self)}")
        run = int(np.searchsorted(self._begins, index, "right")) - 1
        return self.folders[run] + self._name(index)

    def __iter__(self) -> Iterator[str]:
        for folder, start, stop in self.runs():
            for index in range(start, stop):
                yield folder + self._name(index)

    def _name(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self._ends[index]])

    def runs(self) -> Iterator[Run]:
        """The files by folder, in order; a folder that has folders between its files comes more than once."""
        stops = [*self._begins.tolist(), len(self)][1:]
        yield from zip(self.folders, self._begins.tolist(), stops, strict=True)

    def part(self, runs: list[Run]) -> "Files":
        """The files of some of the :meth:`runs`, in that order."""
        chosen = np.concatenate([np.arange(0), *(np.arange(start, stop) for _, start, stop in runs)])
        starts = np.concatenate([[0], self._ends[:-1]])
        names = b"".join(self.names[starts[start] : self._ends[stop - 1]] for _, start, stop in runs)
        lengths = np.array([stop - start for _, start, stop in runs], np.int64)
        ends = np.cumsum((self._ends - starts)[chosen])
        return Files([folder for folder, _, _ in runs], np.cumsum(lengths) - lengths, names, ends)

    def arrays(self) -> dict[str, np.ndarray]:
        """What :meth:`from_arrays` makes the same files of."""
        folders = np.frombuffer(b"\0".join(os.fsencode(folder) for folder in self.folders), np.uint8)
        names = np.frombuffer(self.names, np.uint8)
        return {"folders": folders, "begins": self._begins, "names": names, "ends": self._ends}

    @classmethod
    def from_arrays(cls, arrays) -> "Files":
        """The files that :meth:`arrays` describes."""
        folders = [os.fsdecode(folder) for folder in arrays["folders"].tobytes().split(b"\0")]
        names = arrays["names"].tobytes()
        return cls(folders, arrays["begins"], names, arrays["ends"])


@dataclass(frozen=True)
class Found:
    """The files below a folder; Parquet files apart from images.

    Attributes:
        images: image files.
        parquet: Parquet files, sorted.
        skipped: what is neither.
        times: of every folder that was read, by its path with a last separator, what :func:`_state` says.
        lasting: whether nothing was in the way (a folder or file that can't be read, a link that leads nowhere) that
            may be gone tomorrow without a folder's time telling.
    """

    images: Files
    parquet: list[str]
    skipped: list[Skipped]
    times: dict[str, list[int]]
    lasting: bool


class _Entries(NamedTuple):
    """A folder's images and folders, sorted as their paths are."""

    images: list[str]
    folders: list[str]


@dataclass
class _Walk:
    """What has been found so far."""

    entries: dict[str, _Entries] = field(default_factory=dict)
    times: dict[str, list[int]] = field(default_factory=dict)
    lasting: bool = True
    parquet: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def scan(root: str) -> Found:
    """Every file below ``root``; hidden ones are ignored, links to folders are followed once.

    The list of a large folder is kept in the cache folder, and taken from there while the folder is as it was.

    Raises:
        InputError: the folder cannot be read.
    """
    place = _place(root)
    found = None if place is None else _remembered(place, root)
    if found is None:
        begun = time.time()
        found = _walk(root)
        settled = all(max(state[:2]) < (begun - _SETTLED) * 1e9 for state in found.times.values())
        if place is not None and len(found.images) >= REMEMBERED_FROM and found.lasting and settled:
            _remember(place, found)
    return found


def _walk(root: str) -> Found:
    walk = _Walk()
    visited: set[tuple[int, int]] = set()
    # Links wait until all real folders are known, so that a loop or a second way to a folder adds nothing.
    waiting, links = [""], deque[str]()
    while waiting or links:
        prefix = waiting.pop() if waiting else links.popleft()
        folder = os.path.join(root, prefix)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scanner:
                entries = sorted(scanner, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise InputError(f"the folder {root} cannot be read: {error.strerror}") from error
            walk.lasting = False
            walk.skipped.append(Skipped(printable(prefix), f"cannot be read: {error.strerror}"))
            continue
        walk.times[prefix] = _state(status)
        walk.entries[prefix] = here = _Entries([], [])
        for entry in entries:
            _sort_in(entry, prefix, walk, here, waiting, links)
        here.folders.sort()
    walk.parquet.sort()
    walk.skipped.sort()
    return Found(Files.of_runs(_in_order(walk.entries)), walk.parquet, walk.skipped, walk.times, walk.lasting)


def _state(status: os.stat_result) -> list[int]:
    """What changes with a folder's names: times in nanoseconds, and which folder it is."""
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]


def _sort_in(
    entry: os.DirEntry, prefix: str, walk: _Walk, here: _Entries, waiting: list[str], links: deque[str]
) -> None:
    """Put one entry of a folder where it belongs."""
    if entry.name.startswith(".") or entry.name == "__MACOSX":
        return
    path = prefix + entry.name
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:
        walk.lasting = False
        walk.skipped.append(Skipped(printable(path), f"cannot be read: {error.strerror}"))
        return
    if is_folder:
        here.folders.append(entry.name + os.sep)
        (links if entry.is_symlink() else waiting).append(path + os.sep)
    elif not is_file:
        walk.lasting = walk.lasting and not entry.is_symlink()
        walk.skipped.append(Skipped(printable(path), "a broken link" if entry.is_symlink() else "not a regular file"))
    else:
        suffix = os.path.splitext(entry.name)[1].lower()
        first = b"" if suffix else _first_bytes(entry.path)
        walk.lasting = walk.lasting and bool(suffix or first)
        if suffix in IMAGE_SUFFIXES or looks_like_image(first):
            here.images.append(entry.name)
        elif suffix in (".parquet", ".pq"):
            walk.parquet.append(path)
        else:
            walk.skipped.append(Skipped(printable(path), _RAW if suffix in _RAW_SUFFIXES else NO_IMAGE))


def _in_order(entries: dict[str, _Entries]) -> Iterator[tuple[str, list[str]]]:
    """Folders and names so that the whole paths are sorted."""
    stack: list[Run | str] = [""]
    while stack:
        top = stack.pop()
        if isinstance(top, tuple):
            prefix, start, stop = top
            yield prefix, entries[prefix].images[start:stop]
        elif top in entries:  # neither unreadable nor reached another way
            here, start, ahead = entries[top], 0, []
            for folder in here.folders:
                stop = bisect_left(here.images, folder)
                ahead += [(top, start, stop)] * (stop > start) + [top + folder]
                start = stop
            ahead += [(top, start, len(here.images))] * (len(here.images) > start)
            stack += reversed(ahead)


def _place(root: str) -> Path | None:
    """Where the list of ``root`` is kept; None where there is no cache folder, as for a user without a home."""
    key = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]
    try:
        return cache_folder() / "listings" / f"{key}.npz"
    except InputError:
        return None


def _remember(place: Path, found: Found) -> None:
    """Keep the list; where that can't be done, nothing is lost but time."""
    words = {"format": _FORMAT, "parquet": found.parquet, "skipped": found.skipped, "times": found.times}
    arrays = {"words": np.frombuffer(json.dumps(words).encode(), np.uint8), **found.images.arrays()}
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as draft, open(draft, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _remembered(place: Path, root: str) -> Found | None:
    """The list that was kept, if the folder still is what it was."""
    try:
        with open(place, "rb") as file, np.load(file, allow_pickle=False) as kept:
            words = json.loads(kept["words"].tobytes())
            if words["format"] != _FORMAT:
                return None
            images = Files.from_arrays(kept)
    except (OSError, BadZipFile, EOFError, KeyError, RuntimeError, TypeError, ValueError):  # there is none, or damaged
        return None
    skipped = [Skipped(*pair) for pair in words["skipped"]]
    found = Found(images, words["parquet"], skipped, words["times"], lasting=True)
    return found if _unchanged(found.times, root) else None


def _unchanged(times: dict[str, list[int]], root: str) -> bool:
    """Whether every folder's times are still what they were."""
    try:
        return all(_state(os.stat(os.path.join(root, prefix))) == state for prefix, state in times.items())
    except OSError:
        return False


def _first_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError:
        return b""

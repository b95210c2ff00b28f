"""Features that were computed once, kept by what they are of: weights, preparation, images and kind."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from openjepa.errors import InputError
from openjepa.files import expanded, forgotten, sha256_of, sweep_drafts, whole_file, write_whole

# All entries together; the ones longest unused go first.
LIMIT = 4 * 2**30
# Part of every key: raise it when the same inputs (spoilt in the same way, too) give other features.
_FORMAT = 2
KEY = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Features of some images, which images they are of, and why others of those asked for could not be read."""

    values: Float[np.ndarray, "n ..."]
    samples: Int64[np.ndarray, "n"]
    left_out: dict[int, str]


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """A folder of ``KEY.npy`` with ``KEY.json`` beside each: shape, type, checksum and what it is of.

    Attributes:
        folder: made when the first entry is written.
        limit: bytes of all entries; after a write the ones longest unused are removed until the rest fit.
        note: told, for a person, of an entry that was damaged, and of a folder that cannot be written.
    """

    folder: Path
    limit: int = LIMIT
    note: Callable[[str], None] = lambda sentence: None

    def read(self, key: str, asked: Int64[np.ndarray, "n"]) -> Entry | None:
        """The entry of ``key``, or None where there is none or it is damaged (which is said, and it is removed)."""
        array, words = self._paths(key)
        if not words.is_file():
            return None
        try:
            facts = json.loads(words.read_text())
            if sha256_of(array) != facts["sha256"]:
                raise ValueError("its checksum is another")
            values = np.load(array, allow_pickle=False)
            left_out = {int(sample): str(reason) for sample, reason in facts["left_out"]}
            samples = np.setdiff1d(asked, np.array([*left_out], np.int64), assume_unique=True)
            if [*values.shape] != facts["shape"] or str(values.dtype) != facts["dtype"] or len(values) != len(samples):
                raise ValueError(f"it holds {values.dtype} of shape {values.shape}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.note(f"cached features in {array} are damaged ({error}): they are computed again")
            with suppress(OSError):  # somebody else's, or on a disk that is read-only
                for path in (array, words):
                    path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            for path in (array, words):
                os.utime(path)
        return Entry(values=values, samples=samples, left_out=left_out)

    def write(self, key: str, entry: Entry, facts: dict[str, Any]) -> None:
        """Keep an entry; a full or read-only disk is said and costs only the next call's time."""
        array, words = self._paths(key)
        if entry.values.nbytes > self.limit:
            self.note(f"features of {entry.values.nbytes:,} bytes exceed the cache's {self.limit:,} and are not kept")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            checksum = _write_array(array, entry.values)
            facts = facts | {
                "shape": list(entry.values.shape),
                "dtype": str(entry.values.dtype),
                "sha256": checksum,
                "left_out": [*entry.left_out.items()],
            }
            # Last, since an entry is there when its words are.
            write_whole(words, json.dumps(facts, indent=1) + "\n")
            self._shrink(keep=key)
        except OSError as error:
            self.note(f"features cannot be kept in {self.folder} ({error.strerror or error})")

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.npy", self.folder / f"{key}.json"

    def _shrink(self, keep: str) -> None:
        """Remove what killed writers left, and the entries longest unused until the rest fit; others may be doing the
        same at this moment."""
        sweep_drafts(self.folder, f"{'[0-9a-f]' * 40}.*")
        for array in self.folder.glob("*.npy"):
            if KEY.fullmatch(array.stem) and forgotten(array) and not array.with_suffix(".json").exists():
                array.unlink(missing_ok=True)
        found = []
        for words in self.folder.glob("*.json"):
            if not KEY.fullmatch(words.stem):  # somebody's own file
                continue
            try:
                size = words.with_suffix(".npy").stat().st_size
                found.append((words.stat().st_mtime_ns, size, (words, words.with_suffix(".npy"))))
            except FileNotFoundError:
                continue
        remove_oldest(found, self.limit, keep=keep)


def remove_oldest(entries: Sequence[tuple[int, int, tuple[Path, ...]]], limit: int, *, keep: str) -> None:
    """Remove entries (time of last use, size, files) from the oldest on until the sizes add up to ``limit`` or less,
    but never the one whose files are called ``keep``."""
    total = sum(size for _, size, _ in entries)
    for _, size, files in sorted(entries):
        if total <= limit:
            return
        if files[0].stem != keep:
            for path in files:
                path.unlink(missing_ok=True)
            total -= size


def cache_at(folder: Path, note: Callable[[str], None]) -> FeatureCache:
    """The cache in ``folder``; InputError where that is a file."""
    folder = expanded(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--cache {folder} is a file: name a folder, or use --no-cache")
    return FeatureCache(folder=folder, note=note)


def key_of(*parts: Any) -> str:
    """One name for everything that the features depend on; each part as JSON."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:40]


def _write_array(path: Path, values: np.ndarray) -> str:
    """Write and rename; returns the SHA-256 of the file as it should be."""
    with whole_file(path) as draft:
        with open(draft, "wb") as file:
            np.save(file, values, allow_pickle=False)
        return sha256_of(draft)

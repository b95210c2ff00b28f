"""What an evaluator found, kept by what it was asked: comparisons judge the same baselines many times."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from functools import cache as once
from pathlib import Path

import numpy as np

import openjepa.evaluation
from openjepa.assessment.cache import KEY, FeatureCache, key_of, remove_oldest
from openjepa.evaluation.features import Evaluator, Part
from openjepa.evaluation.suite import Found, Judge, judge
from openjepa.files import sweep_drafts, whole_file

# Results kept; each is some ten kilobytes, and the longest unused go first.
MOST = 5000


def remembering(features: FeatureCache | None) -> Judge:
    """A judge that keeps its results beside the ``features``, and looks there first; without them the plain one."""
    if features is None:
        return judge
    folder, note = features.folder / "outcomes", features.note

    def remembered(evaluator: Evaluator, train: Part, test: Part) -> Found:
        # The evaluators are frozen values, so their text says all of their settings.
        path = folder / f"{key_of(repr(evaluator), _code(), _digest(train), _digest(test))}.npz"
        found = _read(path)
        if found is None:
            found = judge(evaluator, train, test)
            _write(path, found, note)
        return found

    return remembered


@once
def _code() -> str:
    """A digest of the evaluators' own code: other code may find something else."""
    folder = Path(next(iter(openjepa.evaluation.__path__)))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def _digest(part: Part) -> str:
    digest = hashlib.sha256(f"{part.values.dtype} {part.values.shape}".encode())
    for array in (part.values, part.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: Path) -> Found | None:
    """The result in a file; None where there is none, or where it cannot be read (it is then found again)."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            words = json.loads(str(kept["words"]))
            arrays: dict[str, dict[str, np.ndarray]] = {"correct": {}, "grades": {}}
            for name in kept.files:
                kind, _, measure = name.partition(":")
                if kind in arrays:
                    arrays[kind][measure] = kept[name]
        with contextlib.suppress(OSError):  # somebody else's, or on a disk that is read-only
            os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    correct, grades = arrays["correct"], arrays["grades"]
    return Found(scores=words["scores"], correct=correct, grades=grades, dimensions=words["dimensions"])


def _write(path: Path, found: Found, note: Callable[[str], None]) -> None:
    words = json.dumps({"scores": found.scores, "dimensions": found.dimensions})
    arrays = {f"correct:{name}": value for name, value in found.correct.items()}
    arrays |= {f"grades:{name}": value for name, value in found.grades.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft, open(draft, "wb") as file:
            np.savez(file, words=np.array(words), **arrays)  # type: ignore[arg-type]
        _shrink(path.parent, keep=path.stem)
    except OSError as error:
        note(f"results cannot be kept in {path.parent} ({error.strerror or error})")


def _shrink(folder: Path, keep: str) -> None:
    """Remove the results longest unused until no more than ``MOST`` are left, and what killed writers left; others may
    be doing the same."""
    sweep_drafts(folder, f"{'[0-9a-f]' * 40}.*")
    found = []
    for path in folder.glob("*.npz"):
        if not KEY.fullmatch(path.stem):  # somebody's own file
            continue
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, 1, (path,)))
    remove_oldest(found, MOST, keep=keep)

"""Checkpoints that are whole or not there: written aside, fsynced, listed with SHA-256, renamed.

A checkpoint is a folder ``step-N`` with ``state.pt`` (weights, optimiser; plain tensors, read with ``weights_only``),
``progress.json`` and ``manifest.json``. Weights and optimiser state are stored whole, whatever the number of processes,
so that any number of them can go on from it.
"""

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openjepa.errors import InputError
from openjepa.files import sha256_of, sync
from openjepa.training.distributed import Processes

MANIFEST = "manifest.json"


class DamagedCheckpoint(InputError):
    """A checkpoint whose files differ from its manifest; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: the optimiser steps done, named tensors, and JSON facts of the run so far."""

    step: int
    state: dict[str, Any]
    progress: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write ``folder/step-N`` atomically and remove older ones; returns its path.

    Kept are the newest ``keep``, and those that one of them names as ``best`` in its facts. Later steps go as well:
    they were damaged, and the run went on from before them.

    Raises:
        InputError: it cannot be written, as on a full disk; those before it stay.
    """
    final = folder / f"step-{checkpoint.step}"
    aside = folder / f".writing-step-{checkpoint.step}"
    try:
        _sweep(folder)
        aside.mkdir(parents=True)
        _write(aside, checkpoint)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk every byte counts
        first = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Mend that"
        raise InputError(
            f"cannot write the checkpoint {final}: {error.strerror or error}. {first}"
            ", then go on with the run (openjepa resume); what was saved before is whole"
        ) from error
    before = folder / f".before-{final.name}"
    if final.exists():  # the same step, reached again after a damaged checkpoint or saved twice on the way out
        final.rename(before)
    aside.rename(final)
    sync(folder)
    shutil.rmtree(before, ignore_errors=True)
    every = steps(folder)
    newest = [step for step in every if step <= checkpoint.step][-keep:]
    named = {_best(folder / f"step-{step}") for step in newest}
    for other in set(every) - {*newest, *named}:
        shutil.rmtree(folder / f"step-{other}", ignore_errors=True)  # the next save tries again
    return final


def _sweep(folder: Path) -> None:
    """Remove what writers left that were killed: drafts, and what was replaced."""
    for draft in folder.glob(".writing-step-*"):
        shutil.rmtree(draft, ignore_errors=True)
    for before in folder.glob(".before-step-*"):
        if (folder / before.name.removeprefix(".before-")).exists():
            shutil.rmtree(before, ignore_errors=True)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint and their manifest, and wait until the disk has them."""
    with (folder / "state.pt").open("wb") as file:
        try:
            torch.save(checkpoint.state, file)
        except RuntimeError as error:  # of PyTorch's writer, which hides what the file said
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    (folder / "progress.json").write_text(json.dumps({"step": checkpoint.step, **checkpoint.progress}, indent=1))
    files = {p.name: {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    for path in (*folder.iterdir(), folder):
        sync(path)


def _best(path: Path) -> int | None:
    """The step that a checkpoint names as the best one so far."""
    try:
        return json.loads((path / "progress.json").read_text()).get("best")
    except (OSError, ValueError):
        return None


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in ``folder``, oldest first, unverified."""
    if not folder.is_dir():
        return []
    names = (p.name.removeprefix("step-") for p in folder.glob("step-*") if p.is_dir())
    return sorted(int(name) for name in names if name.isdigit())


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        DamagedCheckpoint: a file is missing, cut short or altered.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())["files"]
        if not {"state.pt", "progress.json"} <= set(manifest):
            raise ValueError(f"it lists {', '.join(manifest) or 'nothing'}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} has no usable {MANIFEST}: {error}") from error
    for name, facts in manifest.items():
        part = path / name
        if not part.is_file():
            raise DamagedCheckpoint(f"checkpoint {path} is damaged: {name} is missing")
        if part.stat().st_size != facts["bytes"] or sha256_of(part) != facts["sha256"]:
            raise DamagedCheckpoint(f"checkpoint {path} is damaged: {name} does not match its SHA-256")
    progress = json.loads((path / "progress.json").read_text())
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    return Checkpoint(progress.pop("step"), state, progress)


def load_newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint, and a sentence for every damaged one that was passed over.

    Raises:
        InputError: there is none, or all are damaged: nothing restarts from zero silently.
    """
    damaged: list[str] = []
    for before in folder.glob(".before-step-*"):  # a kill came while its successor was put in its place
        if not (final := folder / before.name.removeprefix(".before-")).exists():
            before.rename(final)
    for step in reversed(steps(folder)):
        try:
            return load(folder / f"step-{step}"), damaged
        except DamagedCheckpoint as error:
            damaged.append(str(error))
    encoder = folder.parent / "encoder"
    left = f" What was exported is still in {encoder}." if encoder.is_dir() else ""
    if damaged:
        raise InputError(f"no whole checkpoint is left: {'; '.join(damaged)}. Start anew in another folder.{left}")
    raise InputError(
        f"there is no checkpoint in {folder}: put back what was there, or start anew in another folder.{left}"
    )


def load_alike(folder: Path, processes: Processes) -> tuple[Checkpoint, list[str]]:
    """:func:`load_newest` for several processes: the first one mends and chooses, the others load what it chose.

    What was passed over is told by the first one alone.

    Raises:
        InputError: in all of them, as :func:`load_newest` does, or because one reads another checkpoint than the first.
    """
    found, damaged, error = None, [], ""
    if processes.first:
        try:
            found, damaged = load_newest(folder)
        except InputError as none_left:
            error = str(none_left)
    step, error = processes.gather((found and found.step, error))[0]
    if error:
        raise InputError(error)
    try:
        found = found or load(folder / f"step-{step}")
        own = f"step {found.step} after {found.progress['seconds']} seconds"
    except DamagedCheckpoint as damage:
        own = str(damage)
    read = processes.gather(own)
    for rank, other in enumerate(read):
        if other != read[0]:
            raise InputError(
                f"the processes do not read the same checkpoint in {folder}: number 0 has {read[0]}, number {rank} "
                f"has: {other}. Put the run's folder where all of them read the same files, then resume"
            )
    assert found is not None  # who has none tells of damage, and the first has one
    return found, damaged

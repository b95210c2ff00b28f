"""A run's folder belongs to one process at a time, and is never taken from a run that has begun."""

import hashlib
import json
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openjepa.errors import InputError
from openjepa.experiment import Experiment
from openjepa.files import locked, names_in, sha256_of, write_whole
from openjepa.planning import Plan
from openjepa.training import checkpoint as checkpoints

# Held by the process that trains the run.
LOCK = ".lock"
# What a run holds that was stopped before its first step, or in its first save.
_ASKED = {"experiment.json", "plan.json", "checkpoints", "metrics.jsonl", LOCK}
# In plan.json: which experiment.json was written with it, by which a user's own is told.
_TOLD = "experiment_sha256"
# What every plan.json says of its images.
OF_DATA = {"opened", "fingerprint", "images"}


def has_begun(run: Path) -> bool:
    """Whether a run has taken a step, or could have: it has a checkpoint, or logged something."""
    log = run / "metrics.jsonl"
    return bool(checkpoints.steps(run / "checkpoints")) or (log.is_file() and log.stat().st_size > 0)


def check_free(run: Path) -> None:
    """Refuse, before anything is computed, a folder that a new run cannot have.

    Raises:
        InputError: there is something already, which is never overwritten, or the folder cannot be written.
    """
    if has_begun(run):
        raise InputError(
            f"{run} is a run already: go on with it (openjepa resume {shlex.quote(str(run))}), or choose another --out"
        )
    # A run that was stopped before its first step holds nothing but what it was asked for.
    if run.exists() and (not run.is_dir() or names_in(run) - _ASKED):
        raise InputError(f"{run} exists and is not empty: choose another --out")
    _check_own(run)
    standing = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        raise InputError(
            f"{run} cannot be made: {standing} is no folder that you may write to ({error.strerror})"
        ) from error


def _check_own(run: Path) -> None:
    """Refuse a folder with an experiment.json or a plan.json that a new run would write over and no run has written."""
    experiment, plan = run / "experiment.json", run / "plan.json"
    told = None
    if plan.is_file():
        try:
            facts = json.loads(plan.read_bytes())
            # Earlier versions' plans do not tell, and are known by their data.
            told = facts[_TOLD] if _TOLD in facts or not set(facts["data"]) >= OF_DATA else ""
        except (ValueError, TypeError, LookupError):
            raise InputError(
                f"{run} holds a plan.json that openjepa has not written, and it would be lost: choose another --out, "
                "or move the file"
            ) from None
    if experiment.is_file() and sha256_of(experiment) != told:
        known = told is not None and _is_experiment(experiment)
        on = f"go on with it (openjepa resume {shlex.quote(str(run))}), " if known else ""
        raise InputError(
            f"{run} holds an experiment.json of your own, edited, or of an earlier version, and it would be lost: {on}"
            "choose another --out, or move the file (--experiment FILE takes its settings)"
        )


def _is_experiment(path: Path) -> bool:
    try:
        Experiment.from_json(path.read_text(encoding="utf-8"), origin=path)
    except (InputError, UnicodeDecodeError):
        return False
    return True


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from beginning, training or comparing in a folder while this one is inside.

    The folder and those above it are made if they are not there, and go again if nothing was put into them.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from error
    with locked(folder / LOCK) as free:
        if not free:
            raise InputError(f"{folder} is being trained by another process: wait for it, or end it")
        try:
            yield
        finally:
            with suppress(OSError):
                if made and {path.name for path in folder.iterdir()} <= {LOCK}:
                    (folder / LOCK).unlink(missing_ok=True)
                    for part in made:  # the innermost first
                        part.rmdir()


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Hold a folder for a new run, from before it is planned.

    Raises:
        InputError: a new run cannot have it.
    """
    check_free(run)
    with held(run):
        check_free(run)  # which another process may have filled between the two
        yield


def make_run(run: Path, planned: Plan) -> None:
    """Write ``experiment.json`` and ``plan.json``, which make a run of a folder that is :func:`claimed`."""
    experiment = planned.experiment.to_json()
    facts = planned.facts | {_TOLD: hashlib.sha256(experiment.encode()).hexdigest()}
    # Whenever this is stopped, an experiment.json is a run's own by what the plan.json beside it says.
    (run / "experiment.json").unlink(missing_ok=True)
    write_whole(run / "plan.json", json.dumps(facts, indent=1) + "\n")
    write_whole(run / "experiment.json", experiment)

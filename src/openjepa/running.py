"""A run from its folder: train it, go on with it, and write what it leaves behind."""

import copy
import dataclasses
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openjepa import draws
from openjepa.claiming import OF_DATA, held
from openjepa.data.base import Source, Splits, printable
from openjepa.data.copies import Copies, copies_folder
from openjepa.data.loader import ordered_batches, training_batches
from openjepa.data.sources import in_full, open_data
from openjepa.diagnosis.looks import choose
from openjepa.errors import InputError
from openjepa.experiment import Experiment
from openjepa.files import whole_file, write_whole
from openjepa.interop import huggingface
from openjepa.progress import tell
from openjepa.training import checkpoint as checkpoints
from openjepa.training.distributed import Processes, whole_weights
from openjepa.training.metrics import read_rows
from openjepa.training.step import refuse_uneven
from openjepa.training.trainer import Trainer
from openjepa.watching import Watch

PICTURES = 12
# Which step's encoder stands in encoder/, and why; for the card and the report.
EXPORTED = "exported.json"
_NAMES = {"ijepa": "I-JEPA encoder", "mae": "MAE encoder", "denoising": "Encoder of a denoising autoencoder"}
_SUMMARIES = {
    "ijepa": "The target encoder of an I-JEPA run, trained without labels by predicting in latent space.",
    "mae": "The encoder of a masked autoencoder (MAE), trained without labels by predicting hidden patches' pixels.",
    "denoising": "The encoder of a denoising autoencoder, trained without labels by taking noise out of images.",
}

# Of the images looked into on resume, the share that may be others than at the plan: some may break, or be mended.
_OTHERS = 0.25
# As many of the files that have changed are named.
_NAMED = 3
# So long (seconds) they are looked for.
_SEARCH = 10.0


def read_experiment(run: Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment and the plan of a run folder.

    Raises:
        InputError: it is not a run.
    """
    path = run / "experiment.json"
    if not path.is_file():
        raise InputError(f"{run} is not a run: there is no experiment.json in it")
    try:
        experiment = Experiment.from_json(path.read_text(encoding="utf-8"), origin=path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as text ({error}): restore it, or begin a new run") from error
    try:
        plan = json.loads((run / "plan.json").read_text())
        if not set(plan["data"]) >= OF_DATA:
            raise ValueError("it does not say which images the run has")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"{run / 'plan.json'} is missing or damaged ({error}): restore it, or begin a new run"
        ) from error
    return experiment, plan


def own_data(run: Path, plan: dict[str, Any], *, first: bool = True) -> Splits:
    """The images that a run was begun with.

    Args:
        run: its folder.
        plan: what its ``plan.json`` holds.
        first: whether this is the first of several processes, which alone looks for what has changed.

    Raises:
        InputError: they are gone, or are others now.
    """
    opened = plan["data"]["opened"]
    try:
        splits = open_data(opened)
    except InputError as error:
        raise InputError(
            f"{run} is a run on {opened}, which cannot be opened: {error}. If the images have moved, say where to: "
            f"openjepa resume {shlex.quote(str(run))} --data FOLDER"
        ) from error
    return _same(run, plan, splits, first)


def moved(run: Path, data: str) -> None:
    """Make a run remember that its images are at ``data`` now.

    Raises:
        InputError: it is not a run, or these are other images.
    """
    plan = read_experiment(run)[1]
    _same(run, plan, open_data(data))
    plan["data"]["opened"] = in_full(data)
    write_whole(run / "plan.json", json.dumps(plan, indent=1) + "\n")


def _same(run: Path, plan: dict[str, Any], splits: Splits, first: bool = True) -> Splits:
    """The images, if they are the run's.

    Raises:
        InputError: they are others.
    """
    source = splits.train
    if source.fingerprint != plan["data"]["fingerprint"]:
        raise InputError(
            f"the images of {source.name} are not those that {run} began with ({plan['data']['images']} then, "
            f"{len(source)} now, or other names or sizes): restore them, or begin a new run (if nothing has changed, "
            f"another version of openjepa took other files or folders for the train part: CHANGELOG.md)"
            f"{_changed(run, splits) if first else ''}"
        )
    recorded = plan["data"].get("spread", [])  # not in runs of versions before 2026-11-30
    others = sum(then != now for then, now in zip(recorded, source.spread, strict=True)) if recorded else 0
    if others > _OTHERS * len(recorded):
        raise InputError(
            f"the images of {source.name} have the names and sizes of those that {run} began with, but {others} of "
            f"{len(recorded)} looked into hold something else: restore them, or begin a new run"
        )
    return splits


def _changed(run: Path, splits: Splits) -> str:
    """A few of the files and folders among the images that were changed or copied since the run was planned, as many
    as are found in a short time, and how to list them all, in words; empty where the images are not in a folder here,
    or none was."""
    folder, planned = Path(splits.train.name).expanduser(), (run / "plan.json").stat().st_mtime
    if not folder.is_dir():
        return ""
    changed, late, end = list[str](), False, time.monotonic() + _SEARCH
    for path in _paths(folder):
        with suppress(OSError):  # gone again
            if os.lstat(path).st_ctime > planned:
                changed.append(path)
        late = time.monotonic() > end
        if late or len(changed) > _NAMED:
            break
    if not changed and not late:
        return ""
    named = ", ".join(map(printable, changed[:_NAMED])) + (", ..." if len(changed) > _NAMED else "")
    find = f"find {shlex.quote(str(folder))} -cnewer {shlex.quote(str(run / 'plan.json'))}"
    return f". Changed or copied since it was planned: {named and f'{named}; all of them: '}{find}"


def _paths(folder: Path) -> Iterator[str]:
    """A folder and all that lies below, in the order of their names."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        yield here
        yield from (os.path.join(here, name) for name in sorted(files))


class Run:
    """A run folder with its data and its trainer.

    Args:
        run: the folder, which holds ``experiment.json`` and ``plan.json``.
        workers: another number of loader processes than the experiment's; it does not change the run.
        bad_images: another share of the images (0 to 1) that may be unreadable; it does not change the run's numbers.
        write: writes what copies are missing, where the run trains from copies.
        say: told, once and when it is met, what a user had put in the place of the exported files, and where it is now.

    Attributes:
        choice: which checkpoint's encoder was exported and why, in a sentence; empty where it is the last one's.
    """

    def __init__(
        self,
        run: Path,
        processes: Processes,
        *,
        workers: int | None = None,
        bad_images: float | None = None,
        write: Callable[[Copies], None] = Copies.write,
        say: Callable[[str], None] = tell,
    ) -> None:
        self.folder, self.processes = run, processes
        saved, self.plan = read_experiment(run)
        self.experiment = saved.on(processes)
        refuse_uneven(self.experiment.training, processes)
        given = {"workers": workers, "bad_images": bad_images}
        own = {name: value for name, value in given.items() if value is not None}
        self.experiment = replace(self.experiment, training=replace(self.experiment.training, **own))
        self.splits = self._own_data()
        source = self._source(self.splits.train, write)
        experiment, training = self.experiment, self.experiment.training
        self.objective = experiment.objective()
        self.encoder = copy.deepcopy(self.objective.representation)
        self.watch = Watch(source, self.experiment, self.objective, processes)

        def batches(start: int):
            return training_batches(
                source,
                experiment.preprocessing,
                experiment.augmentation,
                experiment.masking(),
                batch=training.batch,
                seed=experiment.seed,
                workers=training.workers,
                start_step=start,
                rank=processes.rank,
                world=processes.world,
                pieces=training.accumulate,
                pin=processes.device.type == "cuda",
            )

        self.trainer = Trainer(
            self.objective,
            batches=batches,
            preprocessing=experiment.preprocessing,
            schedule=experiment.schedule,
            optimizer=experiment.optimizer,
            training=training,
            processes=processes,
            run=run,
            reference=source.reference,
            images=len(source),
            watch=self.watch,
            saved=self._saved,
            experiment=dataclasses.asdict(experiment),
        )
        self.exported, self.choice = 0, ""
        self.say, self._told = say, set[str]()

    def _own_data(self) -> Splits:
        """The run's images. A process that finds others waits for the first one's words: torchrun ends all with one."""
        found, error = None, ""
        try:
            found = own_data(self.folder, self.plan, first=self.processes.first)
        except InputError as others:
            error = str(others)
        if error := next(filter(None, self.processes.gather(error)), ""):
            raise InputError(error)
        assert found is not None
        return found

    def _source(self, images: Source, write: Callable[[Copies], None]) -> Source:
        """What the run reads in training: the images, or their copies, written where there are none (or no more)."""
        if not self.plan["data"].get("copies"):
            return images
        height, width = self.plan["data"]["copies"]
        copies = Copies(images, (height, width), copies_folder())
        if self.processes.first_here:
            write(copies)
        self.processes.wait(patiently=True)
        return copies if copies.size else images

    def _saved(self, weights: dict[str, Any]) -> None:
        """After a checkpoint: the encoder in it, so that a run that is killed leaves one too."""
        if self.trainer.best in (None, self.trainer.done):  # else the best so far stands in encoder/ already
            self._take(weights)
            self.export()

    def _take(self, weights: dict[str, Any]) -> None:
        """The representation among an objective's weights."""
        (prefix,) = (
            f"{name}." for name, part in self.objective.named_modules() if part is self.objective.representation
        )
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        self.encoder.load_state_dict(own)
        self.exported = self.trainer.done

    def train(self, *, until: int | None = None, show: bool = True) -> str | None:
        """Train to the end (or to step ``until``), then export; returns the signal that stopped it early, or None.

        Raises:
            InputError: another process trains it.
        """
        with held(self.folder) if self.processes.first else nullcontext():
            return self._train(until, show)

    def _train(self, until: int | None, show: bool) -> str | None:
        stopped = self.trainer.train(until=until, show=show)
        state = whole_weights(self.objective.representation)
        if self.processes.first:
            self.encoder.load_state_dict(state)
            self.exported = self.trainer.done
            if self.trainer.best is not None:
                self._take_best(self.trainer.best)
            self.export()
            write_pictures(self.folder / "pictures.npz", self.splits.train, self.experiment, self.encoder)
        return stopped

    def _take_best(self, step: int) -> None:
        """The encoder of the checkpoint that the score without labels likes best; where it is damaged, the last one."""
        try:
            weights = checkpoints.load(self.folder / "checkpoints" / f"step-{step}").state["objective"]
        except checkpoints.DamagedCheckpoint as error:
            self.choice = f"The last encoder is exported, for the best one is lost ({error})."
            return
        self._take(weights)
        self.exported = step
        found = choose(read_rows(self.folder / "metrics.jsonl"))
        score = "" if found is None else f" ({found.score:+.2f}; 0 is the untrained encoder)"
        self.choice = (
            f"The encoder of step {step:,} of {self.trainer.done:,} is exported: of all looks, the score without "
            f"labels is highest there{score}."
        )

    def export(self, *, evaluation: list[dict[str, Any]] | None = None) -> None:
        """Write ``encoder/`` (Hugging Face layout, with ``evaluation`` rows in its card); the first process only."""
        card = _card(self.plan, self.exported, self.experiment, evaluation or [], self.choice)
        preprocessing = self.experiment.preprocessing
        kept = huggingface.export(
            self.encoder, self.folder / "encoder", preprocessing=preprocessing, card=card, keep_others=True
        )
        for sentence in kept:
            if sentence not in self._told:  # it would be told again at every checkpoint
                self._told.add(sentence)
                self.say(sentence)
        write_whole(self.folder / EXPORTED, json.dumps({"step": self.exported, "choice": self.choice}) + "\n")


def _card(
    plan: dict[str, Any], step: int, experiment: Experiment, evaluation: list[dict[str, Any]], choice: str
) -> dict[str, Any]:
    card = {
        "name": _NAMES[experiment.method],
        "method": experiment.method,
        "summary": _SUMMARIES[experiment.method],
        "trained on": f"{plan['data']['images']} images",
        "steps": f"{step} of {experiment.training.steps}",
        "evaluation": evaluation,
    }
    return card | ({"checkpoint": choice} if choice else {})


def renew_card(run: Path, evaluation: list[dict[str, Any]]) -> Path | None:
    """Write the card of a run's encoder again, with the ``evaluation`` rows in its table; returns its path, None where
    somebody has edited it.

    Raises:
        InputError: it is not a run, or holds no encoder.
    """
    experiment, plan = read_experiment(run)
    try:
        facts = json.loads((run / EXPORTED).read_text())
        step, choice = int(facts["step"]), str(facts["choice"])
    except (OSError, ValueError, LookupError) as error:
        raise InputError(
            f"{run / EXPORTED} is missing or damaged ({error}): openjepa resume {shlex.quote(str(run))} writes it"
        ) from error
    return huggingface.renew_card(run / "encoder", _card(plan, step, experiment, evaluation, choice))


@torch.no_grad()
def write_pictures(path: Path, source: Source, experiment: Experiment, encoder: torch.nn.Module) -> None:
    """Some images with their masks and the encoder's features, for the report; unreadable ones are left out."""
    chosen = np.sort(draws.permutation(len(source), "pictures", experiment.seed)[:PICTURES])
    batch = next(iter(ordered_batches(source, experiment.preprocessing, chosen, batch=PICTURES, workers=0)))
    if not len(batch.samples):
        return
    masks = experiment.masking()(batch.samples, 0)
    first = torch.arange(len(batch.samples)) * (len(masks.context) // len(batch.samples))
    normalised = experiment.preprocessing.normalise(batch.images)
    features = encoder.eval()(normalised).float().numpy()
    with whole_file(path) as draft, open(draft, "wb") as file:
        np.savez_compressed(
            file,
            images=experiment.preprocessing.pictures(batch.images),
            grid=np.asarray(experiment.encoder.grid.shape),
            patch=np.asarray(experiment.encoder.patch),
            context=masks.context[first].numpy(),
            context_valid=masks.context_valid[first].numpy(),
            targets=masks.targets[first].numpy(),
            features=features,
        )

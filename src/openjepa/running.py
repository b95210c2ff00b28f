"""A run from its folder: begin it, go on with it, and write what it leaves behind."""

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from openjepa import draws
from openjepa.data.base import Source, Splits
from openjepa.data.loader import ordered_batches, training_batches
from openjepa.data.sources import open_data
from openjepa.errors import InputError
from openjepa.evaluation.knn import leave_one_out
from openjepa.evaluation.spectrum import rankme
from openjepa.experiment import Experiment
from openjepa.interop import huggingface
from openjepa.objectives.base import Objective
from openjepa.planning import Plan
from openjepa.training import checkpoint
from openjepa.training.distributed import Processes
from openjepa.training.trainer import Trainer

PICTURES = 12
_SUMMARIES = {
    "ijepa": "The target encoder of an I-JEPA run, trained without labels by predicting in latent space.",
    "mae": "The encoder of a masked autoencoder (MAE), trained without labels by predicting hidden patches' pixels.",
    "denoising": "The encoder of a denoising autoencoder, trained without labels by taking noise out of images.",
}


def check_free(run: Path) -> None:
    """Refuse, before anything is computed, a folder that a new run cannot have.

    Raises:
        InputError: there is something already, which is never overwritten, or the folder cannot be written.
    """
    if (run / "checkpoints").exists():
        raise InputError(f"{run} is a run already: go on with it (openjepa resume {run}), or choose another --out")
    # A run that was stopped before its first step holds nothing but what it was asked for.
    if run.exists() and (not run.is_dir() or {path.name for path in run.iterdir()} - {"experiment.json", "plan.json"}):
        raise InputError(f"{run} exists and is not empty: choose another --out")
    standing = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        raise InputError(
            f"{run} cannot be made: {standing} is no folder that you may write to ({error.strerror})"
        ) from error


def make_run(run: Path, planned: Plan) -> None:
    """Make the folder with ``experiment.json`` and ``plan.json``, which make it a run.

    Raises:
        InputError: it cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run} cannot be made: {error.strerror}") from error
    (run / "plan.json").write_text(json.dumps(planned.facts, indent=1) + "\n")
    (run / "experiment.json").write_text(planned.experiment.to_json())


def read_experiment(run: Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment and the plan of a run folder.

    Raises:
        InputError: it is not a run.
    """
    path = run / "experiment.json"
    if not path.is_file():
        raise InputError(f"{run} is not a run: there is no experiment.json in it")
    experiment = Experiment.from_json(path.read_text(), origin=path)
    try:
        plan = json.loads((run / "plan.json").read_text())
        if not {"opened", "fingerprint", "images"} <= set(plan["data"]):
            raise ValueError("it does not say which images the run has")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"{run / 'plan.json'} is missing or damaged ({error}): restore it, or begin a new run"
        ) from error
    return experiment, plan


def own_data(run: Path, plan: dict[str, Any]) -> Splits:
    """The images that a run was begun with.

    Raises:
        InputError: they are gone, or are others now.
    """
    splits = open_data(plan["data"]["opened"])
    source = splits.train
    if source.fingerprint != plan["data"]["fingerprint"]:
        raise InputError(
            f"the images of {source.name} are not those that {run} began with ({plan['data']['images']} then, "
            f"{len(source)} now, or other names or sizes): restore them, or begin a new run"
        )
    return splits


class Run:
    """A run folder with its data and its trainer.

    Args:
        run: the folder, which holds ``experiment.json`` and ``plan.json``.
        workers: another number of loader processes than the experiment's; it does not change the run.
    """

    def __init__(self, run: Path, processes: Processes, *, workers: int | None = None) -> None:
        self.folder, self.processes = run, processes
        self.experiment, self.plan = read_experiment(run)
        if workers is not None:
            self.experiment = replace(self.experiment, training=replace(self.experiment.training, workers=workers))
        self.splits = own_data(run, self.plan)
        source = self.splits.train
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
        )

    def _saved(self, weights: dict[str, Any]) -> None:
        """After a checkpoint: the encoder in it, so that a run that is killed leaves one too."""
        (prefix,) = (
            f"{name}." for name, part in self.objective.named_modules() if part is self.objective.representation
        )
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        self.encoder.load_state_dict(own)
        self.export()

    def train(self, *, until: int | None = None, show: bool = True) -> str | None:
        """Train to the end (or to step ``until``), then export; returns the signal that stopped it early, or None."""
        stopped = self.trainer.train(until=until, show=show)
        state = whole_representation(self.objective)
        if self.processes.first:
            self.encoder.load_state_dict(state)
            self.export()
            write_pictures(self.folder / "pictures.npz", self.splits.train, self.experiment, self.encoder)
        return stopped

    def export(self, *, evaluation: list[dict[str, Any]] | None = None) -> None:
        """Write ``encoder/`` (Hugging Face layout, with ``evaluation`` rows in its card); the first process only."""
        card = _card(self.plan, self.trainer.done, self.experiment, evaluation or [])
        preprocessing = self.experiment.preprocessing
        huggingface.export(self.encoder, self.folder / "encoder", preprocessing=preprocessing, card=card)


def _card(plan: dict[str, Any], done: int, experiment: Experiment, evaluation: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "summary": _SUMMARIES[experiment.method],
        "trained on": f"{plan['data']['images']} images",
        "steps": f"{done} of {experiment.training.steps}",
        "evaluation": evaluation,
    }


def renew_card(run: Path, evaluation: list[dict[str, Any]]) -> Path:
    """Write the card of a run's encoder again, with the ``evaluation`` rows in its table; returns its path.

    Raises:
        InputError: it is not a run, or holds no encoder.
    """
    experiment, plan = read_experiment(run)
    done = max(checkpoint.steps(run / "checkpoints"), default=0)
    return huggingface.renew_card(run / "encoder", _card(plan, done, experiment, evaluation))


def whole_representation(objective: Objective) -> dict[str, Any]:
    """The representation's weights as whole CPU tensors; every process must call it."""
    return get_model_state_dict(
        objective.representation, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


class Watch:
    """Looks at the representation during training: RankMe, and k-NN where folder names give labels.

    The labels never reach the loss. Up to ``images`` training images, chosen by the seed, are kept prepared in memory.
    """

    def __init__(
        self, source: Source, experiment: Experiment, objective: Objective, processes: Processes, *, images: int = 1000
    ) -> None:
        chosen = np.sort(draws.permutation(len(source), "watch", experiment.seed)[:images])
        batches = ordered_batches(source, experiment.preprocessing, chosen, batch=100, workers=0)
        read = [(batch.images, batch.labels) for batch in batches if len(batch.samples)]
        if not read:
            raise InputError(f"none of {len(chosen)} images of {source.name} that were tried can be used")
        self.images = [images for images, _ in read]
        self.labels = torch.cat([labels for _, labels in read])
        self.objective, self.preprocessing, self.device = objective, experiment.preprocessing, processes.device
        self.precision = experiment.training.precision

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``rankme`` and, with labels, ``knn`` (leave-one-out accuracy in [0, 1])."""
        encoder = self.objective.representation.eval()
        pooled = []
        for images in self.images:
            x = self.preprocessing.normalise(images.to(self.device))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                pooled.append(encoder(x).float().mean(1).cpu())
        features = torch.cat(pooled)
        found = {"rankme": rankme(features)}
        if (self.labels >= 0).sum() >= 100 and len(self.labels[self.labels >= 0].unique()) > 1:
            found["knn"] = leave_one_out(features, self.labels)
        return found


@torch.no_grad()
def write_pictures(path: Path, source: Source, experiment: Experiment, encoder: torch.nn.Module) -> None:
    """Some images with their masks and the encoder's features, for the report; unreadable ones are left out."""
    chosen = np.sort(draws.permutation(len(source), "pictures", experiment.seed)[:PICTURES])
    batch = next(iter(ordered_batches(source, experiment.preprocessing, chosen, batch=PICTURES, workers=0)))
    if not len(batch.samples):
        return
    masks = experiment.masking()(batch.samples, 0)
    first = torch.arange(len(batch.samples)) * (len(masks.context) // len(batch.samples))
    valid = torch.ones_like(masks.context, dtype=torch.bool) if masks.context_valid is None else masks.context_valid
    normalised = experiment.preprocessing.normalise(batch.images)
    aside = path.with_name("writing-" + path.name)
    np.savez_compressed(
        aside,
        images=experiment.preprocessing.pictures(batch.images),
        grid=np.asarray(experiment.encoder.grid.shape),
        patch=np.asarray(experiment.encoder.patch),
        context=masks.context[first].numpy(),
        context_valid=valid[first].numpy(),
        targets=masks.targets[first].numpy(),
        features=encoder.eval()(normalised).float().numpy(),
    )
    aside.replace(path)

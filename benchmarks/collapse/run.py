"""Many tiny runs, good and bad settings mixed, watched at every tenth beside real evaluations.

    python benchmarks/collapse/run.py --out FILE.jsonl [--first N] [--runs N] [--steps N]
    python benchmarks/collapse/run.py --out FILE.jsonl --cifar FOLDER [--seeds N N] [--lengths 400 1200] [--replicas N]
        (the known pair, which sinks and climbs out; hours)

Each run appends one line of JSON with its settings and, for the untrained encoder and every tenth of the run, what the
watch saw (:class:`openjepa.watching.Watch`), what was logged, and k-NN and linear probe of the library's evaluators on
labelled images that the watch does not have, and, of the tiny runs, on the same images turned, asked which way up they
are (:mod:`openjepa.assessment.rotations`). The untrained target encoder is the random encoder to compare with. Runs
that are in the file already are left out, so that a stopped study goes on. ``analyse.py`` reads the file.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openjepa import draws
from openjepa.assessment.rotations import rotated
from openjepa.data.base import Source, Splits
from openjepa.data.loader import ordered_batches, training_batches
from openjepa.data.sources import open_data
from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.evaluation.features import extract
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.experiment import Experiment
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.base import Objective
from openjepa.objectives.ijepa import IJEPAConfig
from openjepa.training.distributed import Processes
from openjepa.training.metrics import read_rows
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import TrainingConfig
from openjepa.training.trainer import Trainer
from openjepa.watching import Watch

LOOKS = 10
# What is drawn: every run takes one value of each, independently of the others.
CHOICES: dict[str, tuple[Any, ...]] = {
    "momentum": (0.0, 0.5, 0.9, 0.98, 0.996),
    "lr": (5e-4, 1e-3, 3e-3, 1e-2, 2e-2),
    "target_scale": ((0.05, 0.1), (0.15, 0.2), (0.3, 0.4)),
    "context_share": (0.1, 0.25, 0.5, 1.0),
    "target_norm": ("layer", "layer", "feature", "position", "whiten"),
    "variance_covariance": (0.0, 0.0, 0.05),
    "predictor_depth": (1, 2, 4),
    "crop": (0.3, 0.8),
}


def settings(number: int) -> dict[str, Any]:
    """The settings of run ``number``, a function of the number alone."""
    names = list(CHOICES)
    u = draws.uniform("collapse study", number, np.arange(len(names)))
    return {name: CHOICES[name][int(u[i] * len(CHOICES[name]))] for i, name in enumerate(names)}


def tiny(number: int, steps: int) -> Experiment:
    """A run on the bundled sample: 4x4 tokens, an encoder of width 64 and depth 2, batches of 32."""
    chosen = settings(number)
    return Experiment(
        recipe="collapse study",
        seed=number,
        mean=(0.286,),
        std=(0.353,),
        encoder=EncoderConfig(signal=(28, 28), patch=(7, 7), channels=1, width=64, depth=2, heads=2),
        predictor=PredictorConfig(width=64, depth=chosen["predictor_depth"], heads=2),
        masks=MultiBlockConfig(target_scale=chosen["target_scale"], context_share=chosen["context_share"]),
        ijepa=IJEPAConfig(
            momentum=(chosen["momentum"], 1.0),
            target_norm=chosen["target_norm"],
            variance_covariance=chosen["variance_covariance"],
        ),
        schedule=ScheduleConfig(lr=chosen["lr"], start_lr=chosen["lr"] / 5),
        augmentation=replace(Experiment().augmentation, crop_scale=(chosen["crop"], 1.0)),
        optimizer=OptimizerConfig(betas=(0.9, 0.95)),
        training=TrainingConfig(
            steps=steps, batch=32, precision="float32", workers=0, log_every=5, watch_every=steps // LOOKS,
            save_every=steps, keep=1,
        ),
    )  # fmt: skip


def known(steps: int, seed: int, replicas: int) -> Experiment:
    """The known pair on CIFAR-10: LayerNorm targets, EMA 0.996, 20 of 64 context tokens, batches of 256."""
    return Experiment(
        recipe="known collapse",
        seed=seed,
        mean=(0.491, 0.482, 0.447),
        std=(0.247, 0.243, 0.262),
        encoder=EncoderConfig(signal=(32, 32), patch=(4, 4), channels=3, width=192, depth=6, heads=3),
        predictor=PredictorConfig(width=96, depth=4, heads=3),
        masks=MultiBlockConfig(context_tokens=20),
        ijepa=IJEPAConfig(momentum=(0.996, 1.0)),
        schedule=ScheduleConfig(lr=1e-3, start_lr=2e-4),
        training=TrainingConfig(
            steps=steps, batch=256, precision="float32", workers=0, replicas=replicas, log_every=5,
            watch_every=max(1, steps // LOOKS), save_every=steps, keep=1,
        ),
    )  # fmt: skip


Labelled = list[tuple[torch.Tensor, torch.Tensor]]


class Judge:
    """k-NN and linear probe of an objective's representation on labelled images that stay aside, as they are and, where
    it is asked for, ``turned``."""

    def __init__(self, splits: Splits, experiment: Experiment, learn: int, test: int, turned: bool) -> None:
        assert splits.test is not None
        self.preprocessing = experiment.preprocessing
        # Other images than the watch's, which come from the front of its own permutation of the same images.
        seen = set(draws.permutation(len(splits.train), "watch", experiment.seed)[:1000].tolist())
        order = draws.permutation(len(splits.train), "judged")
        own = np.array([i for i in order[: learn + 1000].tolist() if i not in seen][:learn])
        held = draws.permutation(len(splits.test), "judged")[:test]
        parts = [_images(splits.train, experiment, own), _images(splits.test, experiment, held)]
        self.parts = {"": parts} | ({"turned_": [_turned(part) for part in parts]} if turned else {})

    def __call__(self, objective: Objective) -> dict[str, float]:
        """Accuracies in [0, 1]."""
        objective.eval()

        def encode(images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"encoder": objective.representation(self.preprocessing.normalise(images)).mean(1)}

        found = {}
        for prefix, parts in self.parts.items():
            learn, test = (extract(encode, part)["encoder"] for part in parts)
            for name, evaluator in (("knn", KNN()), ("probe", LinearProbe())):
                found[prefix + name] = evaluator(learn, test)["accuracy"]
        return found


def _turned(part: Labelled) -> Labelled:
    """The images, each turned by quarters; how many is its label."""
    count = sum(map(len, (labels for _, labels in part)))
    every = (4 * draws.uniform("turned", np.arange(count))).astype(np.int64)
    pieces = np.split(every, np.cumsum([len(labels) for _, labels in part])[:-1])
    return [(rotated(images, own), torch.from_numpy(own)) for (images, _), own in zip(part, pieces, strict=True)]


def _images(source: Source, experiment: Experiment, index: np.ndarray) -> Labelled:
    batches = ordered_batches(source, experiment.preprocessing, np.sort(index), batch=250, workers=0)
    return [(batch.images, batch.labels) for batch in batches]


def run(experiment: Experiment, splits: Splits, *, learn: int, test: int, turned: bool = False) -> dict[str, Any]:
    """Train in a folder that is thrown away; returns the untrained look and one for every tenth of the run."""
    objective = experiment.objective()
    alone = Processes(0, 1, torch.device("cpu"))
    watch = Watch(splits.train, experiment, objective, alone)
    judge = Judge(splits, experiment, learn, test, turned)
    looks: list[dict[str, Any]] = []
    spent = {"watch": 0.0, "judge": 0.0}

    def look() -> dict[str, float]:
        begin = time.perf_counter()
        seen = watch()
        watched = time.perf_counter()
        looks.append({"watch": seen, "judged": judge(objective)})
        spent["watch"] += watched - begin
        spent["judge"] += time.perf_counter() - watched
        return seen

    def batches(start: int) -> Iterator:
        return training_batches(
            splits.train,
            experiment.preprocessing,
            experiment.augmentation,
            experiment.masking(),
            batch=experiment.training.batch,
            seed=experiment.seed,
            workers=0,
            start_step=start,
        )

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # the trainer looks before the first step, too
        trainer = Trainer(
            objective,
            batches=batches,
            preprocessing=experiment.preprocessing,
            schedule=experiment.schedule,
            optimizer=experiment.optimizer,
            training=experiment.training,
            processes=alone,
            run=Path(folder),
            reference=splits.train.reference,
            images=len(splits.train),
            watch=look,
        )
        if (stopped := trainer.train(show=False)) is not None:  # half a run is no result
            raise KeyboardInterrupt(stopped)
        rows = read_rows(Path(folder) / "metrics.jsonl")
    return {"rows": rows, "looks": looks, "seconds": time.perf_counter() - begin, **spent}


def finished(out: Path) -> set[int | str]:
    """The runs that are in the file."""
    return {json.loads(line)["run"] for line in out.read_text().splitlines()} if out.exists() else set()


def study(out: Path, numbers: range, steps: int) -> None:
    """Every run of these numbers that is not in ``out`` yet."""
    done = finished(out)
    splits = open_data(None)
    for number in numbers:
        if number in done:
            continue
        experiment = tiny(number, steps)
        try:
            found: dict[str, Any] = run(experiment, splits, learn=1200, test=1000, turned=True)
        except Exception as error:  # noqa: BLE001  a run that breaks down is a result of its settings too
            found = {"failed": f"{type(error).__name__}: {error}"}
        add(out, {"run": number, "settings": settings(number), "steps": steps, **found})


def pair(out: Path, data: Path, lengths: Sequence[int], seeds: Sequence[int], replicas: int) -> None:
    """The known collapse, and the longer run of the same settings that climbs out."""
    done = finished(out)
    splits = open_data(str(data))
    for seed in seeds:
        for length in lengths:
            if (name := f"cifar-{length}-{seed}") in done:
                continue
            experiment = known(length, seed, replicas)
            found = run(experiment, splits, learn=10_000, test=5_000)
            add(out, {"run": name, "settings": asdict(experiment.ijepa), "steps": length, **found})


def add(out: Path, line: dict[str, Any]) -> None:
    """Append a run to the file, and print where it began and ended."""
    with out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    ends = "" if "failed" in line else " ".join(
        f"{name} {100 * line['looks'][0]['judged'][name]:.1f} -> {100 * line['looks'][-1]['judged'][name]:.1f}"
        for name in ("knn", "probe")
    ) + f" in {line['seconds']:.0f} s"  # fmt: skip
    print(line["run"], line["settings"], ends or line["failed"], flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="the first run's number, which settles its settings")
    parser.add_argument("--runs", type=int, default=72)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[400, 1200], help="of the known pair, in steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the known pair")
    parser.add_argument("--replicas", type=int, default=0, help="of the known pair, as many cores train it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.cifar is not None:
        pair(given.out, given.cifar, given.lengths, given.seeds, given.replicas)
    else:
        study(given.out, range(given.first, given.first + given.runs), given.steps)


if __name__ == "__main__":
    main()

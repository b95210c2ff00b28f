"""What each setting of the small recipe is worth, one at a time, with paired seeds; the reference's flaws among them.

    python benchmarks/ablation/run.py --out FILE.jsonl [--data DATA] [--seeds 2] [--steps 1500] [--precision bf16]
                                      [--levers NAME ...]
    python benchmarks/ablation/run.py --table FILE.jsonl [--against NAME]

Every run is the ``small`` recipe on the bundled sample (or DATA, with labels and a test part) with one thing changed,
the same seeds and steps for all, judged by k-NN and linear probe on all images. Each appends one line of JSON; runs
that are there are left out, so a stopped study goes on. ``--table`` prints differences from the unchanged recipe, seed
by seed, as Markdown. Times are CPU time of the one thread that computes; a busy neighbour changes them by a fifth.

The baselines stand by themselves: ``--steps 3000 --levers mae "mae: lr 0.0005" ...``, then ``--against mae``.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from openjepa import draws
from openjepa.cli import suit_the_process
from openjepa.data.base import Source, Splits
from openjepa.data.loader import Masking, ordered_batches, training_batches
from openjepa.data.sources import open_data
from openjepa.data.survey import levels, survey
from openjepa.diagnosis.advice import slow_teacher, spread_weight
from openjepa.encoder import Encoder
from openjepa.evaluation.features import Features
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.experiment import Experiment, Method
from openjepa.grid import TokenGrid, resample_positions, sincos_positions
from openjepa.masking import MultiBlockMasking, block_extents
from openjepa.masks import Masks, first_tokens, inside_blocks
from openjepa.objectives.base import Objective
from openjepa.objectives.ijepa import IJEPA
from openjepa.recipes.baselines import baseline
from openjepa.recipes.choice import choose, scaled
from openjepa.training.distributed import Processes
from openjepa.training.step import Step

Change = Callable[[Experiment], Experiment]


class Edges(MultiBlockMasking):
    """The published placement: a block never reaches the last row or column (flaw 1)."""

    def _blocks(self, ids, step, attempt, name, count):
        axes = len(self._extents)
        keys = (self.seed, step, ids[:, None, None], attempt, np.arange(count)[:, None], np.arange(2 * axes))
        u = draws.uniform(f"mask {name}", *keys)
        scale, aspect = getattr(self.config, f"{name}_scale"), getattr(self.config, f"{name}_aspect")
        extents = np.minimum(block_extents(self._extents, scale, aspect, u[..., :axes]), np.asarray(self._extents) - 1)
        start = np.floor(u[..., axes:] * (np.asarray(self._extents) - extents)).astype(np.int64)
        return inside_blocks(self._coords, start, extents)


class Raster(MultiBlockMasking):
    """The published truncation: of the tokens that are seen, the first in raster order are kept (flaw 2)."""

    def _index(self, ids, step, targets, visible):
        fair = super()._index(ids, step, targets, visible)
        rows = visible.reshape(-1, self.grid.size)
        first = first_tokens(rows, self.context_tokens)
        return Masks(torch.from_numpy(first), fair.targets)


class Shared(MultiBlockMasking):
    """One random number for scale and aspect, and one block size for all images of an epoch (flaw 3)."""

    def _blocks(self, ids, step, attempt, name, count):
        axes = len(self._extents)
        size = np.repeat(draws.uniform(f"mask size {name}", self.seed, step, attempt), axes)
        keys = (self.seed, step, ids[:, None, None], attempt, np.arange(count)[:, None], np.arange(axes))
        u = draws.uniform(f"mask {name}", *keys)
        scale, aspect = getattr(self.config, f"{name}_scale"), getattr(self.config, f"{name}_aspect")
        extents, room = self._room(block_extents(self._extents, scale, aspect, size))
        start = np.floor(u * room).astype(np.int64)
        return inside_blocks(self._coords, start, extents)

    def _room(self, extents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The extents of blocks, and how many places there are for each."""
        return extents, np.asarray(self._extents) - extents + 1


class Flawed(Shared, Raster):
    """All three."""

    def _room(self, extents):
        extents = np.minimum(extents, np.asarray(self._extents) - 1)
        return extents, np.asarray(self._extents) - extents


def changed(**parts: dict[str, Any]) -> Change:
    """The experiment with some settings of some parts replaced."""
    return lambda experiment: replace(
        experiment, **{part: replace(getattr(experiment, part), **settings) for part, settings in parts.items()}
    )


def of_batch(batch: int, *, lr: bool) -> Change:
    """Another batch, the learning rates as they are or times the root of its ratio to the recipe's."""

    def change(experiment: Experiment) -> Experiment:
        rebatched = changed(training={"batch": batch})(experiment)
        return scaled(rebatched, experiment) if lr else rebatched

    return change


def muon(lr: float = 1.0) -> Change:
    """Muon for the matrices of the blocks, with so many times the highest learning rate (AdamW's too)."""

    def change(experiment: Experiment) -> Experiment:
        return changed(optimizer={"matrices": "muon"}, schedule={"lr": lr * experiment.schedule.lr})(experiment)

    return change


def in_turn(*changes: Change) -> Change:
    """One change after the other."""
    return lambda experiment: reduce(lambda so_far, change: change(so_far), changes, experiment)


def another(method: Method, lr: float | None = None, before: Change = lambda experiment: experiment) -> Change:
    """Another method, after another change, with its recipe's learning rate or this one."""

    def change(experiment: Experiment) -> Experiment:
        turned = baseline(before(experiment), method)
        return turned if lr is None else changed(schedule={"lr": lr})(turned)

    return change


@torch.no_grad()
def embed_as_published(objective: Objective) -> None:
    """Patch embeddings of standard deviation 0.02, whatever the patch (here they begin scaled to it)."""
    for encoder in (module for module in objective.modules() if isinstance(module, Encoder)):
        encoder.embed.weight *= min(1.0, math.sqrt(encoder.embed.in_features / 768))


PER_FEATURE = changed(ijepa={"target_norm": "feature", "variance_covariance": spread_weight("feature")})


@dataclass(frozen=True)
class Lever:
    """What is changed: settings, the sampler of masks (None: the method's own), the weights to begin with, or the share
    of the steps, the first ones, that see pictures of three quarters of the extents (patches stay as they are)."""

    change: Change = lambda experiment: experiment
    masking: type[MultiBlockMasking] | None = None
    begin: Callable[[Objective], None] = lambda objective: None
    small_first: float = 0.0


LEVERS: dict[str, Lever] = {
    "unchanged": Lever(),
    "flaw: edges never reached": Lever(masking=Edges),
    "flaw: context cut in raster order": Lever(masking=Raster),
    "flaw: one number for scale and aspect": Lever(masking=Shared),
    "flaw: patch embedding drawn with 0.02": Lever(begin=embed_as_published),
    "all flaws; published targets, EMA, betas, crops": Lever(
        changed(
            ijepa={"target_norm": "layer", "variance_covariance": 0.0, "momentum": (0.996, 1.0)},
            optimizer={"betas": (0.9, 0.999)},
            augmentation={"crop_scale": (0.3, 1.0)},
        ),
        Flawed,
        embed_as_published,
    ),
    "no variance-covariance term": Lever(changed(ijepa={"variance_covariance": 0.0})),
    "variance-covariance 0.03": Lever(changed(ijepa={"variance_covariance": 0.03})),
    "targets: LayerNorm alone": Lever(changed(ijepa={"target_norm": "layer"})),
    "targets: per feature": Lever(changed(ijepa={"target_norm": "feature"})),
    "targets: per feature, with a spread of their own": Lever(PER_FEATURE),
    "targets: per feature and place": Lever(changed(ijepa={"target_norm": "position"})),
    "targets of depth 3 alone": Lever(changed(ijepa={"target_depths": (3,)})),
    "targets of two depths (3, 6)": Lever(changed(ijepa={"target_depths": (3, 6)})),
    "targets of two depths (0, 6)": Lever(changed(ijepa={"target_depths": (0, 6)})),
    "width 96, depth 4": Lever(changed(encoder={"width": 96, "depth": 4})),
    "batch 16": Lever(of_batch(16, lr=False)),
    "batch 16, lr by the root": Lever(of_batch(16, lr=True)),
    "batch 256": Lever(of_batch(256, lr=False)),
    "batch 256, lr by the root": Lever(of_batch(256, lr=True)),
    "lr doubled": Lever(lambda experiment: changed(schedule={"lr": 2 * experiment.schedule.lr})(experiment)),
    "EMA from 1 - 50 / steps": Lever(
        lambda experiment: changed(ijepa={"momentum": (slow_teacher(experiment.training.steps), 1.0)})(experiment)
    ),
    "EMA from 0.996": Lever(changed(ijepa={"momentum": (0.996, 1.0)})),
    "EMA from 0.9": Lever(changed(ijepa={"momentum": (0.9, 1.0)})),
    "L2 loss": Lever(changed(ijepa={"loss": "l2"})),
    "all visible tokens seen": Lever(changed(masks={"context_share": 1.0})),
    "two mask sets for a teacher pass": Lever(changed(masks={"contexts": 2})),
    "larger targets (0.3 to 0.4)": Lever(changed(masks={"target_scale": (0.3, 0.4)})),
    "predictor depth 2": Lever(changed(predictor={"depth": 2})),
    "predictor width 64": Lever(changed(predictor={"width": 64})),
    "weight decay 0.05 throughout": Lever(changed(schedule={"weight_decay": 0.05, "final_weight_decay": 0.05})),
    "crops of 0.3 to 1.0": Lever(changed(augmentation={"crop_scale": (0.3, 1.0)})),
    "Muon": Lever(muon()),
    "Muon, half the rate": Lever(muon(0.5)),
    "Muon, targets: per feature": Lever(in_turn(PER_FEATURE, muon())),
    "Muon, targets: per feature, EMA from 0.996": Lever(
        in_turn(PER_FEATURE, changed(ijepa={"momentum": (0.996, 1.0)}), muon())
    ),
    "noise of 0.25 on positions": Lever(changed(ijepa={"position_noise": 0.25})),
    "noise of 0.5 on positions": Lever(changed(ijepa={"position_noise": 0.5})),
    "smaller pictures for half of the steps": Lever(small_first=0.5),
    "smaller pictures for three quarters of the steps": Lever(small_first=0.75),
}  # fmt: skip
BASELINES: dict[str, Lever] = {
    method: Lever(another(method)) for method in ("mae", "denoising")
} | {
    f"{method}: Muon": Lever(another(method, before=muon())) for method in ("mae", "denoising")
} | {
    f"{method}: lr {lr:g}": Lever(another(method, lr)) for method in ("mae", "denoising") for lr in (2.5e-4, 5e-4, 2e-3)
}  # fmt: skip


def recipe(splits: Splits, seed: int, steps: int, precision: Literal["bf16", "float32"]) -> Experiment:
    """The small recipe for these images."""
    seen = survey(splits.train)
    found = levels(splits.train, seen.median, seen.channels)
    images, size, mean, std = len(splits.train), seen.median, found.mean, found.std
    made, _ = choose("small", method="ijepa", size=size, mean=mean, std=std, images=images, device="cpu")
    return replace(made, seed=seed, training=replace(made.training, steps=steps, precision=precision))


def regrid(objective: Objective, before: TokenGrid, grid: TokenGrid) -> None:
    """Make I-JEPA predict on another token grid; what the statistics of its targets say of places goes with them."""
    assert isinstance(objective, IJEPA)
    native, predictor, norm = objective.target_encoder.config.grid, objective.predictor, objective.standardise
    predictor.table = sincos_positions(native, predictor.config.width, grid)
    assert norm is not None
    assert norm.kind == "whiten"
    norm.mean = resample_positions(norm.mean, before, grid)
    norm.sums = torch.zeros(2, *norm.mean.shape)


def sized(experiment: Experiment, lever: Lever, share: float) -> tuple[tuple[int, int], Masking]:
    """Extents of about this share of the recipe's, in whole patches, and the masks of their grid."""
    encoder = experiment.encoder
    height, width = (
        max(1, round(share * extent / patch)) * patch
        for extent, patch in zip(encoder.signal, encoder.patch, strict=True)
    )
    own = replace(experiment, encoder=replace(encoder, signal=(height, width)))
    masking = own.masking() if lever.masking is None else lever.masking(own.encoder.grid, own.masks, seed=own.seed)
    return (height, width), masking


def run(lever: str, seed: int, steps: int, precision: Literal["bf16", "float32"], splits: Splits) -> dict[str, Any]:
    """Train, and judge the target encoder."""
    made = (LEVERS | BASELINES)[lever]
    experiment = made.change(recipe(splits, seed, steps, precision))
    objective = experiment.objective().train()
    made.begin(objective)
    step = Step(
        objective,
        schedule=experiment.schedule,
        optimizer=experiment.optimizer,
        training=experiment.training,
        processes=Processes(0, 1, torch.device("cpu")),
    )
    begin = time.process_time()
    grid, change_at = experiment.encoder.grid, round(made.small_first * steps)
    for share, numbers in ((0.75, range(change_at)), (1.0, range(change_at, steps))):
        if not numbers:
            continue
        signal, masking = sized(experiment, made, share)
        before, grid = grid, TokenGrid.of(signal, experiment.encoder.patch)
        if grid != before:
            regrid(objective, before, grid)
        stream = training_batches(
            splits.train,
            replace(experiment.preprocessing, size=signal),
            experiment.augmentation,
            masking,
            batch=experiment.training.batch,
            seed=seed,
            workers=0,
            start_step=numbers.start,
        )
        for number, batch in zip(numbers, stream, strict=False):
            step(experiment.preprocessing.normalise(batch.images), batch.masks, number)
    seconds = time.process_time() - begin
    assert splits.test is not None
    parts = [_features(source, experiment, objective.eval().representation) for source in (splits.train, splits.test)]
    found = {"knn": KNN().classify(*parts).scores(), "probe": LinearProbe().classify(*parts).scores()}
    return {
        "lever": lever, "data": splits.train.name, "seed": seed, "steps": steps, "precision": precision,
        "seconds": seconds,
        **{name: scores["accuracy"] for name, scores in found.items()},
    }  # fmt: skip


@torch.inference_mode()
def _features(source: Source, experiment: Experiment, encoder: torch.nn.Module) -> Features:
    values, labels = [], []
    for batch in ordered_batches(source, experiment.preprocessing, batch=500, workers=0):
        values.append(encoder(experiment.preprocessing.normalise(batch.images)).mean(1).numpy())
        labels.append(batch.labels.numpy())
    return Features(np.concatenate(values), np.concatenate(labels), "encoder")


def table(lines: list[dict[str, Any]], against: str) -> str:
    """Mean accuracy of each lever, and its difference from the one ``against`` over the seeds that both have."""
    by = {(line["lever"], line["seed"]): line for line in lines}
    head = "| change | seeds | k-NN | difference | probe | difference | time of a step |"
    rows = [head, f"|{'---|' * 7}"]
    for lever in dict.fromkeys(line["lever"] for line in lines):
        seeds = [seed for name, seed in by if name == lever and (against, seed) in by]
        if not seeds:
            continue
        own, plain = ([by[name, seed] for seed in seeds] for name in (lever, against))
        cells = []
        for measure in ("knn", "probe"):
            differences = [100 * (a[measure] - b[measure]) for a, b in zip(own, plain, strict=True)]
            cells.append(f"{100 * np.mean([a[measure] for a in own]):.1f}")
            cells.append("" if lever == against else _interval(differences))
        ratio = np.mean([a["seconds"] / b["seconds"] for a, b in zip(own, plain, strict=True)])
        rows.append(f"| {lever} | {len(seeds)} | {' | '.join(cells)} | x {ratio:.2f} |")
    return "\n".join(rows)


def _interval(differences: list[float]) -> str:
    """The mean difference, with its standard error where there are several seeds."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return f"{mean:+.1f}"
    return f"{mean:+.1f} ± {float(np.std(differences, ddof=1)) / math.sqrt(len(differences)):.1f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append results to this file")
    parser.add_argument("--table", type=Path, help="print the table of this file")
    parser.add_argument("--against", default="unchanged", help="what the table's differences are from")
    parser.add_argument("--data", help="images with labels and a test part (the bundled sample)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="float32")
    parser.add_argument("--levers", nargs="*", choices=[*LEVERS, *BASELINES], default=list(LEVERS), metavar="NAME")
    given = parser.parse_args()
    if given.table is not None:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()], given.against))
        return
    if given.out is None:
        parser.error("say where to put the results (--out), or which to show (--table)")
    suit_the_process()
    torch.set_num_threads(1)  # so that two studies side by side are no different from one
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(line["lever"], line["seed"], line["steps"]) for line in lines}
    splits = open_data(given.data)
    for seed in range(given.seeds):
        for lever in given.levers:
            if (lever, seed, given.steps) in done:
                continue
            found = run(lever, seed, given.steps, given.precision, splits)
            with given.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(found, flush=True)


if __name__ == "__main__":
    main()

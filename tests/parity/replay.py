"""Replay a recorded training run of the published implementation, and say how far this project's is from it.

    python tests/parity/replay.py DIR

DIR holds trace.json, start.pth.tar, end.pth.tar and batches.npz, as ``tests/parity/trace`` does. Every setting comes
from trace.json. Prints the largest error of each kind as JSON; exits 0 when all are within their tolerance, else 1.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openjepa.data.augmentation import Preprocessing
from openjepa.interop import meta
from openjepa.masks import Masks
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
from openjepa.training.distributed import Processes
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import Step, TrainingConfig

TOLERANCES = {
    "loss": 1e-6,  # relative
    "grad_norm": 1e-6,  # relative
    "lr": 1e-9,  # relative
    "weight_decay": 1e-9,  # relative
    "momentum": 1e-9,  # absolute
    "weights": 1e-5,  # absolute, of the end
}
_NUMBER = r"\d*\.?\d+(?:e[-+]?\d+)?"
# trace.json's names for the numbers of a step
_NAMES = {"loss": "loss", "grad_norm": "grad_norm", "lr": "lr", "weight_decay": "wd", "momentum": "momentum"}


def settings(
    config: Mapping[str, Any], steps: int
) -> tuple[IJEPAConfig, ScheduleConfig, OptimizerConfig, TrainingConfig]:
    """The project's settings for a recorded configuration; what it leaves out is as published."""
    per_epoch = config["iterations_per_epoch"]
    rates = ("start_lr", "lr", "final_lr", "weight_decay", "final_weight_decay")
    schedule = ScheduleConfig(
        warmup_steps=int(config["warmup_epochs"] * per_epoch),
        stretch=float(config.get("ipe_scale") or 1.0),
        **{name: float(config[name]) for name in rates if config.get(name) is not None},
    )
    described = str(config.get("optimizer", ""))
    betas = re.search(rf"betas[^\d.]*({_NUMBER})[^\d.]+({_NUMBER})", described)
    eps = re.search(rf"\beps[^\d.]*({_NUMBER})", described)
    optimizer = OptimizerConfig(
        betas=(float(betas[1]), float(betas[2])) if betas else (0.9, 0.999), eps=float(eps[1]) if eps else 1e-8
    )
    planned = int(config["epochs"] * per_epoch) if "epochs" in config else steps
    start, end = config.get("ema") or (0.996, 1.0)
    return (
        IJEPAConfig(momentum=(float(start), float(end))),
        schedule,
        optimizer,
        TrainingConfig(steps=planned, precision="float32"),
    )


def masks_of(batches: Mapping[str, np.ndarray], step: int) -> Masks:
    """The recorded masks: several contexts of an image are mask sets with the same targets."""
    context = torch.from_numpy(batches[f"context_{step}"]).long()  # contexts, images, tokens
    targets = torch.from_numpy(batches[f"target_{step}"]).long()  # blocks, images, tokens
    rows = context.transpose(0, 1).flatten(0, 1)
    return Masks(rows, targets.transpose(0, 1).repeat_interleave(len(context), 0))


def images_of(batches: Mapping[str, np.ndarray], step: int) -> torch.Tensor:
    """The recorded images, normalised with ImageNet's mean and standard deviation."""
    images = torch.from_numpy(batches["images_uint8"][step])
    size = (images.shape[-2], images.shape[-1])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Preprocessing(size=size, channels=3, mean=mean, std=std).normalise(images)


def largest_weight_error(model: IJEPA, expected: IJEPA) -> float:
    """The largest absolute difference of any weight of the three networks.

    Position tables are no weights: the published code averages the target's along, and rounding moves it.
    """
    found, wanted = dict(model.named_parameters()), dict(expected.named_parameters())
    return max((found[name] - wanted[name]).abs().max().item() for name in wanted)


def load(path: Path, config: Mapping[str, Any], ijepa: IJEPAConfig) -> IJEPA:
    """A recorded checkpoint, with what the weights don't show taken from the configuration."""
    found = meta.read(path, heads=config.get("num_heads"), predictor_heads=config.get("predictor_heads"))
    eps = float(config.get("norm_eps") or 1e-6)
    return replace(
        found,
        encoder_config=replace(found.encoder_config, norm_eps=eps),
        predictor_config=replace(found.predictor_config, norm_eps=eps),
    ).to_ijepa(ijepa)


def replay(folder: Path) -> dict[str, float]:
    """Run the recorded steps from the recorded start; returns the largest error of each kind."""
    trace = json.loads((folder / "trace.json").read_text())
    config, steps = trace["config"], trace["steps"]
    ijepa, schedule, optimizer, training = settings(config, len(steps))
    model = load(folder / "start.pth.tar", config, ijepa)
    processes = Processes(0, 1, torch.device("cpu"))
    take_step = Step(model, schedule=schedule, optimizer=optimizer, training=training, processes=processes)
    errors = dict.fromkeys(TOLERANCES, 0.0)
    model.train()
    with np.load(folder / "batches.npz") as batches:
        for recorded in steps:
            number = recorded["step"]
            row = take_step(images_of(batches, number), masks_of(batches, number), number)
            for name, theirs in _NAMES.items():
                difference = abs(row[name] - recorded[theirs])
                relative = name != "momentum" and recorded[theirs] != 0
                error = difference / abs(recorded[theirs]) if relative else difference
                errors[name] = max(errors[name], math.inf if math.isnan(error) else error)
    errors["weights"] = largest_weight_error(model, load(folder / "end.pth.tar", config, ijepa))
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    errors = replay(parser.parse_args().folder)
    print(json.dumps(errors, indent=1))
    return 0 if all(math.isfinite(error) and error < TOLERANCES[name] for name, error in errors.items()) else 1


if __name__ == "__main__":
    sys.exit(main())

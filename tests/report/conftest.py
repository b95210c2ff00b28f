"""A small, whole run folder, made with numpy, that each test may bend."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def _row(features: str, evaluator: str, value: float, half: float = 0.01) -> dict[str, Any]:
    interval = {"value": value, "low": value - half, "high": value + half}
    return {"features": features, "evaluator": evaluator, "metric": "accuracy", "dimensions": 6, **interval}


def _evaluation(target: float, random: float, pixels: float, half: float) -> list[dict[str, Any]]:
    named = (("trained encoder", target), ("random encoder", random), ("raw pixels", pixels))
    return [
        _row(features, evaluator, value + more, half)
        for evaluator, more in (("k-NN", 0.0), ("linear probe", 0.05))
        for features, value in named
    ]


def _metrics(steps: int, *, full: bool = False) -> list[dict[str, Any]]:
    """A log, from step 0 on, with a dip in the loss and the rarer numbers on every third row.

    In full only where asked (charts cost).
    """
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step - 1, "epoch": step / 10, "loss": 0.2 / step + 0.001 * step, "data_wait": 0.02}
        row |= {"images_per_s": 1000.0, "seconds": 0.5 * step, "peak_memory": 2**30}
        if full:
            row |= {"lr": 1e-3, "weight_decay": 0.04, "momentum": 0.996, "grad_norm": 0.5}
        if step % 3 == 0:
            row |= {"target_std": 0.4, "rankme": 3.5} if full else {"rankme": 3.5}
            row |= {"knn": 0.3} if full else {}
        rows.append(row)
    return rows


def _plan() -> dict[str, Any]:
    data = {"name": "shapes", "images": 100, "skipped": 2, "sizes": "8x12", "channels": 1, "classes": 4}
    return {
        "data": data | {"labelled": True, "split": "a fifth is held out"},
        "recipe": {"name": "small", "why": "few small images"},
        "objective": "ijepa",
        "grid": [2, 3],
        "patch": [4, 4],
        "image": [8, 12],
        "parameters": {"encoder": 1200, "predictor": 300},
        "masks": {"context_tokens": 2, "target_blocks": 2, "target_tokens": 2},
        "steps": 30,
        "epochs": 3.0,
        "batch": 10,
        "flops_per_image": {"forward": 1e6, "step": 4e6},
        "device": "cpu",
        "precision": "bfloat16",
        "threads": 2,
        "versions": {"torch": "2.14.1"},
        "estimate": {"seconds": 20, "memory": 2**30},
    }


def _pictures(channels: int = 1, images: int = 3) -> dict[str, np.ndarray]:

    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 256, (images, 8, 12, channels), dtype=np.uint8),
        "grid": np.array([2, 3]),
        "patch": np.array([4, 4]),
        "context": np.tile(np.array([[0, 1, 0]]), (images, 1)),
        "context_valid": np.tile(np.array([[True, True, False]]), (images, 1)),
        "targets": np.tile(np.array([[[2, 5], [3, 4]]]), (images, 1, 1)),
        "features": random.normal(size=(images, 6, 6)).astype(np.float32),
    }


@dataclass
class RunParts:
    """The files of a run: 30 steps on 100 labelled grey images. A file that is None is not written."""

    path: Path
    plan: dict[str, Any] | None = field(default_factory=_plan)
    experiment: Any = field(default_factory=lambda: {"seed": 7})
    metrics: list[dict[str, Any]] | None = field(default_factory=lambda: _metrics(30))
    evaluation: dict[str, Any] | None = None
    pictures: dict[str, np.ndarray] | None = field(default_factory=_pictures)
    bad_images: list[dict[str, Any]] | None = None

    def __post_init__(self):
        self.score(0.8, 0.6, 0.7)

    def score(self, target: float, random: float, pixels: float, *, half: float = 0.01) -> None:
        """Give the three k-NN accuracies; the probe's are 5 points higher. ``half`` is half of each interval."""
        self.evaluation = {"classes": 4, "test_images": 50, "rows": _evaluation(target, random, pixels, half)}

    def draw(self, channels: int) -> None:
        """Pictures with another number of channels."""
        self.pictures = _pictures(channels)

    def log(self, steps: int, *, full: bool = False) -> None:
        """A log of so many rows, with every number that a run can log or with a few of them."""
        self.metrics = _metrics(steps, full=full)

    def write(self) -> Path:
        """Write the folder and return its path."""
        self.path.mkdir(parents=True)
        named = (("plan", self.plan), ("experiment", self.experiment), ("evaluation", self.evaluation))
        for file, content in named:
            if content is not None:
                (self.path / f"{file}.json").write_text(json.dumps(content))
        for file, rows in (("metrics", self.metrics), ("bad_images", self.bad_images)):
            if rows is not None:
                (self.path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if self.pictures is not None:
            np.savez(self.path / "pictures.npz", allow_pickle=False, **self.pictures)
        return self.path


@pytest.fixture
def parts(tmp_path: Path) -> RunParts:
    """A run's files, whole and well, for a test to bend before it writes them."""
    return RunParts(tmp_path / "run")

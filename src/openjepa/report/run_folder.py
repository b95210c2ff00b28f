"""What a run folder holds, read without trusting it: a killed run leaves half a line, a young one lacks files."""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Integer, Num, UInt8

from openjepa.errors import InputError
from openjepa.report.formats import count, is_number


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The logged rows of a run, one for a step, in the order of the steps."""

    rows: tuple[dict[str, Any], ...]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Steps and values (n, 2) of every name: one pass, for a log may have a million rows."""
        pairs: dict[str, list[tuple[float, float]]] = {}
        for row in self.rows:
            for name, value in row.items():
                if is_number(value):
                    pairs.setdefault(name, []).append((row["step"], value))
        return {name: np.array(column, np.float64) for name, column in pairs.items()}

    def column(self, name: str) -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
        """Steps and values of the rows that hold a finite number under ``name``."""
        table = self._columns.get(name, np.empty((0, 2)))
        return table[:, 0], table[:, 1]

    def last(self, name: str) -> float | None:
        """The last finite value under ``name``, or None."""
        values = self.column(name)[1]
        return float(values[-1]) if len(values) else None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images of the run with their masks and features. Masks and features may be absent."""

    images: UInt8[np.ndarray, "n H W C"]
    grid: tuple[int, int]
    patch: tuple[int, int]
    context: Integer[np.ndarray, "n K"] | None
    context_valid: Bool[np.ndarray, "n K"] | None
    targets: Integer[np.ndarray, "n M T"] | None
    features: Num[np.ndarray, "n N D"] | None


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Everything that the report uses. ``notes`` are sentences about what was missing or damaged; ``stopped_by`` is the
    file about the step that gave a number that was not finite, where the run ended there; ``exported`` says of which
    step the encoder is, and why."""

    path: Path
    plan: dict[str, Any]
    experiment: Any
    metrics: Metrics
    evaluation: dict[str, Any] | None
    pictures: Pictures | None
    bad_images: tuple[dict[str, Any], ...]
    checkpoint_step: int | None
    has_encoder: bool
    exported: dict[str, Any]
    stopped_by: str | None
    notes: tuple[str, ...]

    def planned(self, *keys: str) -> Any:
        """The plan's value under nested keys, or None where any of them is absent."""
        return nested(self.plan, *keys)

    @property
    def steps_done(self) -> int:
        """How many steps are done, by the log (whose steps count from 0) or by a checkpoint."""
        logged = int(self.metrics.rows[-1]["step"]) + 1 if self.metrics.rows else 0
        return max(logged, self.checkpoint_step or 0)

    @property
    def evaluated_step(self) -> int | None:
        """Steps of training that the evaluated encoder had; None where the record does not say."""
        step = nested(self.evaluation, "step")
        return int(step) if is_number(step) else None

    @property
    def outdated(self) -> bool:
        """Whether the evaluation is of another step's encoder than the one that the run holds now."""
        now = self.exported.get("step")
        return self.evaluated_step is not None and is_number(now) and self.evaluated_step != now

    @property
    def finished(self) -> bool | None:
        """Whether all planned steps are done; None if the plan does not say."""
        steps = self.planned("steps")
        return self.steps_done >= steps if is_number(steps) else None


def nested(tree: Any, *keys: str) -> Any:
    """The value under nested keys of JSON objects, or None where any of them is absent."""
    for key in keys:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def predicts_features(run: RunFolder) -> bool:
    """Whether the objective's targets are features, which move with the encoder, and not pixels, which stay."""
    return run.planned("objective") not in ("mae", "denoising")


def read_run(path: Path) -> RunFolder:
    """Read a run folder. Raises InputError where ``path`` is not one."""
    known = ("experiment.json", "plan.json", "metrics.jsonl")
    if not path.is_dir():
        raise InputError(f"{path} is not a folder. Give the run folder that `openjepa pretrain --out` wrote.")
    if not any((path / name).is_file() for name in known):
        raise InputError(
            f"{path} is not a run: it holds none of {', '.join(known)}. "
            "Give the folder that `openjepa pretrain --out` wrote."
        )
    notes: list[str] = []
    plan = _read_json(path / "plan.json", notes)
    evaluation, exported = (_read_json(path / name, notes) for name in ("evaluation.json", "exported.json"))
    rows = [row for row in _read_lines(path / "metrics.jsonl", notes) if is_number(row.get("step"))]
    by_step = {row["step"]: row for row in rows}
    checkpoints = [re.fullmatch(r"step-(\d+)", entry.name) for entry in path.glob("checkpoints/step-*")]
    last = max((int(match[1]) for match in checkpoints if match), default=None)
    return RunFolder(
        path=path,
        plan=plan if isinstance(plan, dict) else {},
        experiment=_read_json(path / "experiment.json", notes),
        metrics=Metrics(rows=tuple(by_step[step] for step in sorted(by_step))),
        evaluation=evaluation if isinstance(evaluation, dict) else None,
        pictures=_read_pictures(path / "pictures.npz", notes),
        bad_images=tuple(_read_lines(path / "bad_images.jsonl", notes)),
        checkpoint_step=last,
        has_encoder=(path / "encoder").is_dir(),
        exported=exported if isinstance(exported, dict) else {},
        stopped_by=f"nonfinite-step-{last}.json" if (path / f"nonfinite-step-{last}.json").is_file() else None,
        notes=tuple(notes),
    )


def _read_json(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        notes.append(f"{path.name} cannot be read ({error}), so what it would show is missing here.")
        return None


def _read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    damaged: list[int] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}).")
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged.append(number)
    if damaged and damaged[-1] == len(lines):
        notes.append(
            f"The last line of {path.name} is cut off, as when a run is killed while it writes. It is left out."
        )
        damaged.pop()
    if damaged:
        which = f"{count(len(damaged))} line{'s' * (len(damaged) > 1)}"
        notes.append(f"{which} of {path.name} cannot be read, the first is line {damaged[0]}.")
    return rows


def _read_pictures(path: Path, notes: list[str]) -> Pictures | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _checked_pictures(arrays)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        notes.append(f"pictures.npz cannot be drawn ({error}).")
        return None


def _checked_pictures(arrays: dict[str, np.ndarray]) -> Pictures:
    """Pictures whose shapes and token numbers agree. Raises ValueError or KeyError with what does not."""
    images, features = arrays["images"], arrays.get("features")
    grid, patch = (tuple(int(v) for v in arrays[name].ravel()) for name in ("grid", "patch"))
    if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
        raise ValueError(f"images are {images.dtype} of shape {images.shape}, expected uint8 (n, H, W, C)")
    if len(grid) != 2 or len(patch) != 2 or min(*grid, *patch) < 1:
        raise ValueError(f"only grids of two axes are drawn, this one is {grid} of patches {patch}")
    n, tokens = len(images), grid[0] * grid[1]
    if features is not None and (features.ndim != 3 or features.shape[:2] != (n, tokens)):
        raise ValueError(f"features have shape {features.shape}, expected ({n}, {tokens}, D)")
    context, targets = arrays.get("context"), arrays.get("targets")
    for name, index, axes in (("context", context, 2), ("targets", targets, 3)):
        if index is None:
            continue
        if index.ndim != axes or len(index) != n or index.dtype.kind not in "iu":
            raise ValueError(
                f"{name} is {index.dtype} of shape {index.shape}, expected {axes} axes of integers, {n} first"
            )
        if index.size and (index.min() < 0 or index.max() >= tokens):
            raise ValueError(f"{name} names token {index.min()} to {index.max()} of a grid of {tokens}")
    valid = arrays.get("context_valid")
    if valid is not None and (context is None or valid.shape != context.shape):
        raise ValueError(f"context_valid has shape {valid.shape}, unlike context")
    return Pictures(
        images=images,
        grid=(grid[0], grid[1]),
        patch=(patch[0], patch[1]),
        context=context,
        context_valid=None if valid is None else valid.astype(bool),
        targets=targets,
        features=features,
    )

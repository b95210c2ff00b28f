"""Learning rate and weight decay as pure functions of the step.

Source: I-JEPA (Assran et al. 2023), app. A.1; in the published implementation's order both advance before the step, so
step 0 already uses place 1 of the schedule.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Schedules over a run.

    Attributes:
        start_lr: learning rate at the start of the warm-up.
        lr: learning rate after the warm-up, the highest.
        final_lr: learning rate at the end of the cosine.
        warmup: share of the run (0 to 1) for the linear warm-up.
        warmup_steps: the same in steps; takes the place of ``warmup`` where given.
        weight_decay: weight decay at the start of its cosine.
        final_weight_decay: weight decay at the end of its cosine.
        stretch: the schedules are laid out for this many times the run's steps, so that the run ends before they do
            (the published ``ipe_scale``, 1.0 or 1.25 in its configurations). Below 1 the cosine turns back, as there.
    """

    start_lr: float = 2e-4
    lr: float = 1e-3
    final_lr: float = 1e-6
    warmup: float = 0.1
    warmup_steps: int | None = None
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    stretch: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1 or (self.warmup_steps is not None and self.warmup_steps < 0):
            raise ValueError(f"warmup is a share of the run in [0, 1), got {self.warmup} ({self.warmup_steps} steps)")
        if not 0 < self.stretch < math.inf:
            raise ValueError(f"stretch is a positive multiple of the run, got {self.stretch}")
        for name in ("start_lr", "lr", "final_lr", "weight_decay", "final_weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of 0 or more, got {getattr(self, name)}")


def learning_rate(config: ScheduleConfig, step: int, steps: int) -> float:
    """The learning rate of ``step`` (from 0) in a run of ``steps``."""
    place, total = step + 1, int(config.stretch * steps)
    warm = round(config.warmup * steps) if config.warmup_steps is None else config.warmup_steps
    if place < warm:
        return config.start_lr + (config.lr - config.start_lr) * place / warm
    return max(config.final_lr, _cosine(config.lr, config.final_lr, (place - warm) / max(1, total - warm)))


def weight_decay(config: ScheduleConfig, step: int, steps: int) -> float:
    """The weight decay of ``step`` (from 0) in a run of ``steps``."""
    total = max(1, int(config.stretch * steps))
    return _cosine(config.weight_decay, config.final_weight_decay, (step + 1) / total)


def progress(config: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the schedule done before ``step`` (at most 1), on which an objective's own schedules run."""
    return min(1.0, step / (config.stretch * steps))


def _cosine(start: float, end: float, along: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * along))

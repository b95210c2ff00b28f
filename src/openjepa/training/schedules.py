"""Learning rate and weight decay as pure functions of the step.

Source: I-JEPA (Assran et al. 2023), app. A.1; in the published implementation's order both advance before the step, so
step 0 already uses place 1 of the schedule, and the last step has its end: so has the only step of a run of one. Steps
beyond a run's last have the numbers of the last.
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
        warmup_steps: the same in steps; takes the place of ``warmup`` where given. A run of no more steps ends before
            the warm-up does, below ``lr``.
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
    """The learning rate of ``step`` (from 0) in a run of ``steps``.

    Raises:
        ValueError: a run without steps.
    """
    place, total = _place(step, steps), int(config.stretch * steps)
    warm = round(config.warmup * steps) if config.warmup_steps is None else config.warmup_steps
    if place < warm:
        return config.start_lr + (config.lr - config.start_lr) * place / warm
    return max(config.final_lr, _cosine(config.lr, config.final_lr, (place - warm) / max(1, total - warm)))


def weight_decay(config: ScheduleConfig, step: int, steps: int) -> float:
    """The weight decay of ``step`` (from 0) in a run of ``steps``.

    Raises:
        ValueError: a run without steps.
    """
    place, total = _place(step, steps), max(1, int(config.stretch * steps))
    return _cosine(config.weight_decay, config.final_weight_decay, place / total)


def progress(config: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the schedule done before ``step`` (at most 1), on which an objective's own schedules run.

    Raises:
        ValueError: a run without steps.
    """
    _place(step, steps)
    return min(1.0, step / (config.stretch * steps))


def _place(step: int, steps: int) -> int:
    """The place of a step in the schedule, from 1."""
    if steps < 1:
        raise ValueError(f"a schedule is of a run of one step or more, got steps={steps}")
    return min(step + 1, steps)


def _cosine(start: float, end: float, along: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * along))

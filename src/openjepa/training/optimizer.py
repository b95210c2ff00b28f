"""AdamW with weight decay on matrices only (I-JEPA, app. A.1)."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from openjepa.settings import check_settings
from openjepa.training.schedules import ScheduleConfig, learning_rate, weight_decay


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of AdamW (Loshchilov and Hutter 2019).

    Attributes:
        betas: decay of Adam's running means of the gradient and of its square.
        eps: added to Adam's denominator.
        clip: largest total gradient norm, or None for no clipping (as published).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"Adam's betas lie in [0, 1), got {self.betas}")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be a number of 0 or more, got {self.eps}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")


def build_optimizer(module: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> torch.optim.AdamW:
    """AdamW over the trainable parameters: biases and 1-D parameters in a group of their own, never decayed."""
    decayed, plain = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name.endswith("bias") else decayed).append(parameter)
    groups = [{"params": decayed, "decayed": True}, {"params": plain, "decayed": False}]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=fused)


def part_of(optimizer: torch.optim.AdamW, own: set[nn.Parameter]) -> torch.optim.AdamW:
    """For a step of some of an optimiser's parameters: the settings that it has now, and the very same state."""
    part = copy.copy(optimizer)
    part.param_groups = [
        {**group, "params": [parameter for parameter in group["params"] if parameter in own]}
        for group in optimizer.param_groups
    ]
    return part


def set_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, step: int, steps: int) -> dict[str, float]:
    """Give the groups the learning rate and weight decay of ``step`` and return both."""
    lr, decay = learning_rate(config, step, steps), weight_decay(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = decay if group["decayed"] else 0.0
    return {"lr": lr, "weight_decay": decay}

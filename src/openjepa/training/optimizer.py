"""AdamW with weight decay on matrices only (I-JEPA, app. A.1), or Muon on those of the blocks."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from openjepa.settings import check_settings
from openjepa.training.muon import Muon
from openjepa.training.schedules import ScheduleConfig, learning_rate, weight_decay
from openjepa.transformer import Block


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of AdamW (Loshchilov and Hutter 2019), and of Muon (training/muon.py).

    Attributes:
        matrices: what moves the matrices of the transformers' blocks: ``adamw``, as published, or ``muon``, which long
            runs of the small recipe have where a step has many tokens. All else is AdamW's.
        muon_momentum: of Muon's running mean of the gradient.
        muon_iterations: of Newton and Schulz, which make all directions of an update equally large.
        betas: decay of Adam's running means of the gradient and of its square.
        eps: added to Adam's denominator.
        clip: largest total gradient norm, or None for no clipping (as published). How far Muon moves does not depend on
            it, but how much a step counts in its mean.
    """

    matrices: Literal["adamw", "muon"] = "adamw"
    muon_momentum: float = 0.95
    muon_iterations: int = 5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"Adam's betas lie in [0, 1), got {self.betas}")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be a number of 0 or more, got {self.eps}")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"Muon's momentum lies in [0, 1), got {self.muon_momentum}")
        if self.muon_iterations < 1:
            raise ValueError(f"muon_iterations must be at least 1, got {self.muon_iterations}")
        own = (self.muon_momentum, self.muon_iterations)
        if self.matrices != "muon" and own != (OptimizerConfig.muon_momentum, OptimizerConfig.muon_iterations):
            raise ValueError(
                f"muon_momentum and muon_iterations are for matrices='muon', and here it is {self.matrices!r} "
                f"(--optimizer.matrices muon asks for it, also where a long run would have it)"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")


def build_optimizers(
    module: nn.Module, config: OptimizerConfig, *, fused: bool = True, bf16: bool = False
) -> list[torch.optim.Optimizer]:
    """AdamW over the trainable parameters: biases and 1-D parameters in a group of their own, never decayed.

    With ``matrices="muon"`` Muon has the matrices of the blocks, with products in bfloat16 if ``bf16``.
    """
    blocks = [part for part in module.modules() if isinstance(part, Block)] if config.matrices == "muon" else []
    inside = {parameter for block in blocks for parameter in block.parameters()}
    joint = {block.attention.qkv.weight for block in blocks}
    together, matrices, decayed, plain = [], [], [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            one_of = plain if parameter.ndim <= 1 or name.endswith("bias") else decayed
            if one_of is decayed and parameter in inside:
                one_of = together if parameter in joint else matrices
            one_of.append(parameter)
    groups = [{"params": decayed, "decayed": True}, {"params": plain, "decayed": False}]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=fused)
    if not matrices:
        return [adamw]
    muon = Muon(
        [{"params": matrices, "decayed": True}, {"params": together, "decayed": True, "parts": 3}],
        lr=0.0,
        weight_decay=0.0,
        momentum=config.muon_momentum,
        iterations=config.muon_iterations,
        bf16=bf16,
    )
    return [adamw, muon]


def part_of(optimizer: torch.optim.Optimizer, own: set[nn.Parameter]) -> torch.optim.Optimizer:
    """For a step of some of an optimiser's parameters: the settings that it has now, and the very same state."""
    part = copy.copy(optimizer)
    part.param_groups = [
        {**group, "params": [parameter for parameter in group["params"] if parameter in own]}
        for group in optimizer.param_groups
    ]
    return part


def set_schedule(
    optimizers: Iterable[torch.optim.Optimizer], config: ScheduleConfig, step: int, steps: int
) -> dict[str, float]:
    """Give the groups the learning rate and weight decay of ``step`` and return both."""
    lr, decay = learning_rate(config, step, steps), weight_decay(config, step, steps)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = lr
        group["weight_decay"] = decay if group["decayed"] else 0.0
    return {"lr": lr, "weight_decay": decay}

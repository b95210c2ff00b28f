"""Targets standardised by statistics of the run so far, so that a small, short run cannot collapse into them.

I-JEPA's LayerNorm leaves in its targets whatever all images share at a place, and directions of very different spread.
A short run on small data learns the first and flattens the second: the loss falls and the features go (see LOG.md).
What is taken out here is estimated over many steps, not within a batch, so accumulated gradients and several processes
still equal one large batch.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

TargetNorm = Literal["layer", "feature", "position", "whiten"]


class RunningNorm(nn.Module):
    """Standardises features by running statistics, updated once a step by :meth:`update`.

    Args:
        kind: ``feature`` (mean and variance of every feature), ``position`` (of every feature of every token on its
            own) or ``whiten`` (the mean of every feature of every token, then the covariance of the features over all
            tokens is made the identity, by its Cholesky factor).
        tokens, values: N and V of the features.
        momentum: of the running statistics.
        floor: for ``whiten``, added to the variances, as a share of their mean; the other kinds add 1e-4.
    """

    mean: Tensor
    spread: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, kind: TargetNorm, *, tokens: int, values: int, momentum: float, floor: float = 0.05) -> None:
        super().__init__()
        self.kind, self.momentum, self.floor = kind, momentum, floor
        places = 1 if kind == "feature" else tokens
        self.register_buffer("mean", torch.zeros(places, values))
        spread = torch.eye(values) if kind == "whiten" else torch.ones(places, values)
        self.register_buffer("spread", spread)
        # Sums of the step: of the images (all entries alike) and of the features; and of squares or products.
        self.register_buffer("sums", torch.zeros(2, places, values), persistent=False)
        self.register_buffer("products", torch.zeros_like(spread), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, features: Float[Tensor, "B N V"]) -> Float[Tensor, "B N V"]:
        """The standardised features; in training mode they also count for the next statistics."""
        centred = features - self.mean
        rows = centred.reshape(-1, *self.mean.shape)
        if self.training:
            self.sums += torch.stack([torch.full_like(self.mean, len(rows)), rows.sum(0)])
            flat = rows.flatten(0, 1)
            self.products += flat.T @ flat / len(self.mean) if self.kind == "whiten" else rows.square().sum(0)
        if self.kind != "whiten":
            return centred * (self.spread + 1e-4).rsqrt()
        ridge = (self.floor * self.spread.diagonal().mean() + 1e-6) * torch.eye(
            len(self.spread), device=features.device
        )
        factor = torch.linalg.cholesky_ex(self.spread + ridge)[0]
        # From the right, so that rows stay rows: in two thirds of the time.
        rows = torch.linalg.solve_triangular(factor.T, centred.flatten(0, 1), upper=True, left=False)
        return rows.view_as(centred)

    def update(self) -> None:
        """Move the statistics towards those of the step, and begin a new step; the first step sets them."""
        count = self.sums[0].clamp(min=1)
        # Without a branch on their values, so that a GPU need not be waited for. No images, no move.
        weight = torch.where(self.mean.any(), 1 - self.momentum, 1.0) * (self.sums[0].max() > 0)
        shift = self.sums[1] / count
        spread = self.products / (count.mean() if self.kind == "whiten" else count)
        # The sums were taken about the old mean; about the new one of the step they are smaller.
        spread = spread - (shift.T @ shift / len(shift) if self.kind == "whiten" else shift.square())
        self.mean += weight * shift
        self.spread.lerp_(spread, weight)
        self.sums.zero_()
        self.products.zero_()

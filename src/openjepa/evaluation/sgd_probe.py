"""The linear probe as papers of self-supervised learning train it: SGD on raw features, perhaps batch-normalised.

A whole grid of learning rates and weight decays is trained side by side: every member sees the same batches, so one
matrix product serves them all.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openjepa import draws
from openjepa.evaluation.features import Features, Outcome
from openjepa.evaluation.split import check_pair, split

_BN_EPS = 1e-5
# Learning rates are told for this batch size and grow with the batch (Goyal et al. 2017).
_REFERENCE_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class LinearGrid:
    """G trained linear layers on the same features; ``shift`` and ``scale`` are the BatchNorm's (or none)."""

    weights: Float[Tensor, "G K D"]
    bias: Float[Tensor, "G K"]
    shift: Float[Tensor, "D"]
    scale: Float[Tensor, "D"]

    def predict(self, values: Float[Tensor, "n D"]) -> Int64[Tensor, "G n"]:
        """The likeliest class of each row under each of the G layers."""
        scaled = (values - self.shift) * self.scale
        return torch.stack([(scaled @ w.T + b).argmax(1) for w, b in zip(self.weights, self.bias, strict=True)])

    def finite(self) -> Tensor:
        """Which of the G layers did not blow up ("G", bool)."""
        return self.weights.isfinite().flatten(1).all(1) & self.bias.isfinite().all(1)


@dataclass(frozen=True, kw_only=True)
class SGDProbe:
    """A linear layer trained by SGD with momentum 0.9, learning rate and weight decay chosen from a grid.

    The protocol is I-JEPA's (Assran et al. 2023, app. A.2, after VISSL): 50 epochs, the rate divided by ten every 15,
    weight decay 0 or 0.0005, with or without an affine-free BatchNorm before the layer (He et al. 2022, app. A.1).
    LARS, made for batches of 16,384, gives way to plain SGD at ``batch``, and the rates are more, since features of a
    small encoder may have any scale. Chosen on ``holdout`` of each class of the TRAIN part; then trained on all of it.
    On features of few strong directions 50 epochs do not reach the optimum that logistic regression finds.

    Attributes:
        rates: learning rates for a batch of 256; they grow with ``batch``.
        decays: weight decays (not on the bias).
        batch_norm: whether features are normalised, by the batch in training, by the whole train part afterwards.
    """

    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    decays: tuple[float, ...] = (0.0, 5e-4)
    batch_norm: bool = False
    epochs: int = 50
    batch: int = 256
    momentum: float = 0.9
    holdout: float = 0.2
    seed: int = 0
    device: str = "cpu"
    name: str = "SGD probe"

    def __post_init__(self) -> None:
        if not self.rates or not self.decays or min(self.rates) <= 0 or min(self.decays) < 0:
            raise ValueError(f"the SGD probe needs rates > 0 and decays >= 0, got {self.rates} and {self.decays}")
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"the SGD probe needs epochs and batch of 1 or more, got {self.epochs} and {self.batch}")

    def classify(self, train: Features, test: Features) -> Outcome:
        """The prediction for each test image, and the rate and decay chosen."""
        check_pair(train, test)
        classes, codes = np.unique(train.labels, return_inverse=True)
        labels = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        values = torch.from_numpy(train.values).to(self.device)
        grid = list(product(self.rates, self.decays))
        rate, decay = grid[self._choose(values, labels, train, len(classes), grid)]
        fitted = self.fit(values, labels, len(classes), [(rate, decay)])
        answer = fitted.predict(torch.from_numpy(test.values).to(self.device))[0]
        predicted = classes[answer.cpu().numpy()]
        settings = {"lr": rate, "weight decay": decay, "epochs": float(self.epochs)}
        return Outcome(predicted=predicted, correct=predicted == test.labels, settings=settings)

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """``accuracy`` with its interval, and the rate and decay chosen."""
        return self.classify(train, test).scores()

    def _choose(
        self, values: Tensor, labels: Tensor, train: Features, classes: int, grid: list[tuple[float, float]]
    ) -> int:
        """The member of the grid that does best on a part held out of the train part (the first among equals)."""
        if len(grid) == 1:
            return 0
        kept, held = (torch.from_numpy(part).to(self.device) for part in split(train.labels, self.holdout, self.seed))
        fitted = self.fit(values[kept], labels[kept], classes, grid)
        right = (fitted.predict(values[held]) == labels[held]).sum(1)
        return int(torch.where(fitted.finite(), right, -1).argmax())

    def fit(
        self,
        values: Float[Tensor, "n D"],
        labels: Int64[Tensor, "n"],
        classes: int,
        grid: list[tuple[float, float]],
    ) -> LinearGrid:
        """Train every (rate, decay) of ``grid``, side by side; labels run from 0 to ``classes`` - 1.

        The weights are laid out "G*K D", so that a batch costs one matrix product forwards and one backwards.
        """
        count, width = values.shape
        batch = min(self.batch, count)
        shape = len(grid), classes
        rates = values.new_tensor([rate * batch / _REFERENCE_BATCH for rate, _ in grid]).repeat_interleave(classes)
        decays = values.new_tensor([decay for _, decay in grid]).repeat_interleave(classes)[:, None]
        # The problem is convex, so that the start is no choice: zero, for every member.
        hot = torch.eye(classes, dtype=values.dtype, device=values.device)
        weights, bias = values.new_zeros(rates.numel(), width), values.new_zeros(rates.numel())
        speed, bias_speed = torch.zeros_like(weights), torch.zeros_like(bias)
        for epoch in range(self.epochs):
            now = rates * 0.1 ** ((epoch * 10) // (3 * self.epochs))
            order = torch.from_numpy(draws.permutation(count, "sgd probe", self.seed, epoch)).to(values.device)
            for index in order[: count - count % batch].split(batch):
                x = values[index]
                if self.batch_norm:
                    variance, mean = torch.var_mean(x, 0, correction=0)
                    x = (x - mean) * (variance + _BN_EPS).rsqrt()
                logits = torch.addmm(bias, x, weights.T).view(batch, *shape)
                error = (logits.softmax(-1) - hot[labels[index], None]).view(batch, -1).div_(batch)
                speed.mul_(self.momentum).addmm_(error.T, x).addcmul_(weights, decays)
                bias_speed.mul_(self.momentum).add_(error.sum(0))
                weights.addcmul_(speed, now[:, None], value=-1)
                bias.addcmul_(bias_speed, now, value=-1)
        shift, scale = torch.zeros_like(values[0]), torch.ones_like(values[0])
        if self.batch_norm:
            variance, shift = torch.var_mean(values, 0, correction=0)
            scale = (variance + _BN_EPS).rsqrt()
        return LinearGrid(weights=weights.view(*shape, width), bias=bias.view(shape), shift=shift, scale=scale)

"""The attentive probe: a learned query gathers what it needs from all tokens, and a linear layer names the class.

The pooling of V-JEPA (Bardes et al. 2024, sec. 4 and app. D): cross-attention from one learned query, added to the
query, an MLP, added again. Some learning rates are trained side by side, as one stack of G probes on the same batches.

With one query nothing is projected token by token: a head's score is q . (W x) = (W^T q) . x, and a weighted mean of
values W x is W times the mean of x. The products are then with G H vectors for each token, not with G D x D matrices.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from openjepa import draws
from openjepa.evaluation.features import Outcome, Tokens, with_gradients
from openjepa.evaluation.split import check_pair, split

_NORM_EPS = 1e-6
_HEAD_WIDTH = 64
_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8
# Images predicted at once.
_PREDICT_BATCH = 256

Weights = dict[str, Tensor]


def heads_for(width: int) -> int:
    """The number of heads that divides ``width`` and comes nearest to heads of 64 features."""
    return min((h for h in range(1, width + 1) if width % h == 0), key=lambda h: abs(width / h - _HEAD_WIDTH))


def initial(grid: int, width: int, classes: int, mlp_ratio: float, seed: int) -> Weights:
    """The weights of ``grid`` equal probes: truncated normal 0.02, zero biases, and a linear layer of zeros."""
    generator = torch.Generator().manual_seed(seed)
    hidden = int(width * mlp_ratio)
    shapes = {"query": (1, width), "key": (width, width), "value": (width, width), "out": (width, width)}
    shapes |= {"mlp_in": (hidden, width), "mlp_out": (width, hidden)}
    weights = {
        name: torch.nn.init.trunc_normal_(torch.empty(1, *shape, dtype=torch.float32), std=0.02, generator=generator)
        for name, shape in shapes.items()
    }
    query = weights["query"]
    weights["linear"] = query.new_zeros(1, classes, width)
    for name, rows in (("value", width), ("out", width), ("mlp_in", hidden), ("mlp_out", width), ("linear", classes)):
        weights[f"{name}_bias"] = query.new_zeros(1, 1, rows)
    for name in ("norm", "last_norm"):
        weights[f"{name}_scale"], weights[f"{name}_bias"] = query.new_ones(1, 1, width), query.new_zeros(1, 1, width)
    return {name: weight.repeat(grid, 1, 1) for name, weight in weights.items()}


def logits(weights: Weights, tokens: Float[Tensor, "B N D"], heads: int) -> Float[Tensor, "G B K"]:
    """The class logits of G stacked probes for a batch of tokens."""
    width = tokens.shape[-1]
    # The norm's own scale and shift would be absorbed by key and value, so it has none.
    x = F.layer_norm(tokens, (width,), eps=_NORM_EPS)
    query = weights["query"]
    grid = len(query)
    q = query.view(grid, heads, 1, -1)
    key = weights["key"].view(grid, heads, -1, width)
    asked = (q @ key).flatten(0, 2) * (width // heads) ** -0.5  # "G*H D"
    attention = (x @ asked.T).softmax(1)  # "B N G*H"
    gathered = (attention.mT @ x).view(len(x), grid, heads, width).permute(1, 2, 0, 3)  # "G H B D"
    value = weights["value"].view(grid, heads, -1, width)
    pooled = (gathered @ value.mT).permute(0, 2, 1, 3).flatten(2) + weights["value_bias"]  # "G B D"
    z = query + pooled @ weights["out"].mT + weights["out_bias"]
    inner = _norm(z, weights, "norm") @ weights["mlp_in"].mT + weights["mlp_in_bias"]
    z = z + F.gelu(inner) @ weights["mlp_out"].mT + weights["mlp_out_bias"]
    return _norm(z, weights, "last_norm") @ weights["linear"].mT + weights["linear_bias"]


def _norm(z: Tensor, weights: Weights, name: str) -> Tensor:
    return F.layer_norm(z, (z.shape[-1],), eps=_NORM_EPS) * weights[f"{name}_scale"] + weights[f"{name}_bias"]


@dataclass(frozen=True, kw_only=True)
class AttentiveProbe:
    """A cross-attention block with one learned query and a linear layer, trained by AdamW on frozen tokens.

    The rate is chosen on ``holdout`` of each class of the TRAIN part and the probe then trained on all of it; warm-up
    over a tenth of the steps, then a cosine to zero. Heads have about 64 features.
    """

    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    decay: float = 0.01
    epochs: int = 10
    batch: int = 128
    mlp_ratio: float = 4.0
    holdout: float = 0.2
    seed: int = 0
    device: str = "cpu"
    name: str = "attentive probe"

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0 or self.epochs < 1 or self.batch < 1 or self.mlp_ratio <= 0:
            raise ValueError(
                f"the attentive probe needs rates and mlp_ratio above 0, epochs and batch of 1 or more, got "
                f"{self.rates}, {self.mlp_ratio}, {self.epochs} and {self.batch}"
            )

    def classify(self, train: Tokens, test: Tokens) -> Outcome:
        """The prediction for each test image, and the rate chosen."""
        check_pair(train, test)
        classes, codes = np.unique(train.labels, return_inverse=True)
        codes, heads = codes.astype(np.int64), heads_for(train.dimensions)
        rate = self.rates[0]
        if len(self.rates) > 1:
            kept, held = split(train.labels, self.holdout, self.seed)
            weights = self.fit(train.values[kept], codes[kept], len(classes), self.rates)
            right = (self._predict(weights, train.values[held], heads) == torch.from_numpy(codes[held])).sum(1)
            rate = self.rates[int(right.argmax())]
        answer = self._predict(self.fit(train.values, codes, len(classes), (rate,)), test.values, heads)[0]
        predicted = classes[answer.numpy()]
        settings = {"lr": rate, "heads": float(heads), "images": float(len(train)), "epochs": float(self.epochs)}
        return Outcome(predicted=predicted, correct=predicted == test.labels, settings=settings)

    def __call__(self, train: Tokens, test: Tokens) -> dict[str, float]:
        """``accuracy`` with its interval, and the rate chosen."""
        return self.classify(train, test).scores()

    @with_gradients()
    def fit(
        self, tokens: np.ndarray, labels: Int64[np.ndarray, "n"], classes: int, rates: tuple[float, ...]
    ) -> Weights:
        """Train one probe for each of ``rates``, side by side; tokens "n N D", labels from 0 to ``classes`` - 1."""
        count, batch = len(tokens), min(self.batch, len(tokens))
        weights = initial(len(rates), tokens.shape[-1], classes, self.mlp_ratio, self.seed)
        weights = {name: weight.to(self.device).requires_grad_() for name, weight in weights.items()}
        optimizer = _AdamW(weights, rates, self.decay)
        heads, steps, step = heads_for(tokens.shape[-1]), self.epochs * (count // batch), 0
        for epoch in range(self.epochs):
            order = draws.permutation(count, "attentive probe", self.seed, epoch)
            for index in np.split(order[: count - count % batch], count // batch):
                x = torch.from_numpy(tokens[index]).to(self.device).float()
                y = torch.from_numpy(labels[index]).to(self.device)
                losses = F.cross_entropy(logits(weights, x, heads).permute(1, 2, 0), y[:, None].expand(-1, len(rates)))
                # Times G, since the mean is over the grid as well: each probe then has the gradient that it has alone.
                gradients = torch.autograd.grad(losses * len(rates), list(weights.values()))
                optimizer.step(gradients, _schedule(step, steps))
                step += 1
        return {name: weight.detach() for name, weight in weights.items()}

    @torch.inference_mode()
    def _predict(self, weights: Weights, tokens: np.ndarray, heads: int) -> Int64[Tensor, "G n"]:
        parts = []
        for start in range(0, len(tokens), _PREDICT_BATCH):
            x = torch.from_numpy(tokens[start : start + _PREDICT_BATCH]).to(self.device).float()
            parts.append(logits(weights, x, heads).argmax(2).cpu())
        return torch.cat(parts, 1)


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


class _AdamW:
    """AdamW (Loshchilov and Hutter 2019) with a learning rate for each of the G members of every stacked weight."""

    def __init__(self, weights: Weights, rates: tuple[float, ...], decay: float) -> None:
        self.weights, self.decay, self.steps = weights, decay, 0
        self.rates = next(iter(weights.values())).new_tensor(rates)[:, None, None]
        self.first = [torch.zeros_like(weight) for weight in weights.values()]
        self.second = [torch.zeros_like(weight) for weight in weights.values()]

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...], factor: float) -> None:
        self.steps += 1
        rates = self.rates * factor
        corrections = [1 - beta**self.steps for beta in _BETAS]
        for (name, weight), gradient, first, second in zip(
            self.weights.items(), gradients, self.first, self.second, strict=True
        ):
            first.lerp_(gradient, 1 - _BETAS[0])
            second.lerp_(gradient.square(), 1 - _BETAS[1])
            if not name.endswith(("bias", "scale")):
                weight.mul_(1 - rates * self.decay)
            weight.sub_(rates * (first / corrections[0]) / ((second / corrections[1]).sqrt_() + _ADAM_EPS))

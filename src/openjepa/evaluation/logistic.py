"""Multinomial logistic regression, all strengths of regularisation solved side by side in one batch of matrix products.

The objective is scikit-learn's: the sum of the cross-entropies plus |weights|^2 / (2 C), intercepts free, so the same C
means the same model. The solver is L-BFGS (Nocedal and Wright 2006, alg. 7.4) started from a diagonal that is exact for
equal class probabilities: along the principal axes of the features the Hessian is then diagonal, and tens of steps do
where hundreds would be needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Numbers held at one time, logits above all: 64 MiB in float32.
_AT_ONCE = 2**24
# Features of sets that are solved side by side, each problem with a copy of its set's: more are faster set by set.
_SIDE_BY_SIDE = 2**20
_HISTORY = 20
# A gradient left over that is no more than this share of 1 / (C n), which is the penalty's for weights of 1, moves the
# weights little in the directions that only the penalty holds; below the other it is float32's rounding.
_SHARE_OF_PENALTY, _ROUNDING = 0.02, 3e-7
# Steps that are tried at the most, and the numbers that these may read where sets are small.
_STEPS, _MOST_STEPS, _READ = 500, 2000, 2**27

# (weights of the problems "g", which problems) -> their losses and gradients
_Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """Features with mean 0 and deviation 1, turned into their principal axes, and the way back."""

    values: Float[Tensor, "n R"]
    mean: Float[Tensor, "D"]
    deviation: Float[Tensor, "D"]
    axes: Float[Tensor, "D R"]
    variance: Float[Tensor, "R"]

    def rows(self, index: Int64[Tensor, "m"]) -> "Standardised":
        """Some of the images, in the coordinates of all."""
        return replace(self, values=self.values[index])


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """G solved problems; ``weights`` are for standardised features, ``gradient`` is the largest component left over."""

    weights: Float[Tensor, "G K D"]
    bias: Float[Tensor, "G K"]
    loss: Float[Tensor, "G"]
    gradient: Float[Tensor, "G"]
    iterations: int

    def only(self, problem: int) -> "LogisticFit":
        """One of the G models."""
        one = slice(problem, problem + 1)
        return replace(
            self, weights=self.weights[one], bias=self.bias[one], loss=self.loss[one], gradient=self.gradient[one]
        )


def standardise(values: Float[Tensor, "n D"]) -> Standardised:
    """Standardise features over the images and turn them to their principal axes; the L2 penalty stays the same.

    A feature whose deviation is only the rounding of its mean counts as constant and becomes 0.
    """
    mean, deviation = values.double().mean(0), values.double().std(0, correction=0)
    constant = deviation <= 1e-6 * mean.abs()
    deviation = torch.where(constant, torch.ones_like(deviation), deviation)
    mean, deviation = mean.to(values.dtype), deviation.to(values.dtype)
    scaled = (values - mean) / deviation
    scaled[:, constant] = 0
    axes = None
    if len(scaled) < scaled.shape[1]:  # the solution lies in the span of the images
        axes = torch.linalg.qr(scaled.T).Q
        scaled = scaled @ axes
    variance, rotation = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    axes = rotation if axes is None else axes @ rotation
    return Standardised(
        values=scaled @ rotation, mean=mean, deviation=deviation, axes=axes, variance=variance.clamp(min=0)
    )


def _loss(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss "G" of logits "G K n" and its gradient by them."""
    log_p = logits.log_softmax(1)
    index = y.expand(len(logits), 1, -1)
    loss = -log_p.gather(1, index).sum((1, 2), dtype=torch.float64)
    return loss, log_p.exp_().scatter_add_(1, index, log_p.new_full((1, 1, 1), -1).expand(index.shape))


def _cross_entropy(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss "G" and its gradient "G K P" of weights "G K P" on x "n P" (the last column is 1), in chunks of rows.

    Classes before images: these products and the softmax took a quarter of the time of the other order (two CPU cores).
    """
    problems, classes, width = weights.shape
    stacked = weights.reshape(problems * classes, width)
    total = weights.new_zeros(problems, dtype=torch.float64)
    gradient = torch.zeros_like(stacked)
    rows = max(1, _AT_ONCE // len(stacked))
    for part, target in zip(x.split(rows), y.split(rows), strict=True):
        loss, error = _loss((stacked @ part.T).view(problems, classes, len(part)), target)
        total += loss
        gradient.addmm_(error.view(-1, len(part)), part)
    return total / len(x), gradient.view_as(weights) / len(x)


def _cross_entropy_of_sets(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same where every problem has features of its own, "G n P", and all have the labels ``y`` "n"."""
    loss, error = _loss(weights @ x.mT, y)
    return loss / len(y), error @ x / len(y)


def _direction(gradient: Tensor, inverse_diagonal: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The L-BFGS step of every problem (rows) from pairs of (step, change of gradient, 1 / their product)."""
    q, alphas = gradient.clone(), []
    for step, change, rho in reversed(pairs):
        alpha = rho * (step * q).sum(1)
        alphas.append(alpha)
        q -= alpha[:, None] * change
    q *= inverse_diagonal
    if pairs:
        _, change, rho = pairs[-1]
        curvature = rho * (change * inverse_diagonal * change).sum(1)
        q /= torch.where(rho > 0, curvature, torch.ones_like(curvature))[:, None]
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - rho * (change * q).sum(1))[:, None] * step
    return -q


def _line_search(
    objective: _Objective, w: Tensor, active: Tensor, direction: Tensor, loss: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each problem's step until its loss falls (Armijo); returns w, loss, gradient and which found no step."""
    slope = (gradient * direction).sum(1).double()
    length, halvings = torch.ones_like(slope), 0
    while True:
        trial = w + length[:, None].to(w.dtype) * direction
        new_loss, new_gradient = objective(trial, active)
        # 1e-7: the rounding of float32 logits, below which "lower" says nothing
        rejected = new_loss > loss + 1e-4 * length * slope + 1e-7 * loss.abs()
        if not rejected.any() or halvings == 12:
            break
        length, halvings = torch.where(rejected, length / 2, length), halvings + 1
    back = rejected[:, None]
    new_loss = torch.where(rejected, loss, new_loss)
    return torch.where(back, w, trial), new_loss, torch.where(back, gradient, new_gradient), rejected


def _minimise(
    objective: _Objective, w: Tensor, inverse_diagonal: Tensor, tolerance: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Batched L-BFGS over the rows of w; a problem leaves the batch when its largest gradient is below its tolerance.

    It leaves as well when no step lowers its loss: float32 is then exhausted. Returns solutions, losses, largest
    gradients and the number of steps.
    """
    active = torch.arange(len(w), device=w.device)
    loss, gradient = objective(w, active)
    stuck = torch.zeros_like(active, dtype=torch.bool)
    solution, losses, leftover = w.clone(), loss.clone(), gradient.abs().amax(1)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for iteration in range(limit):
        keep = (gradient.abs().amax(1) > tolerance[active]) & ~stuck
        if not keep.any():
            return solution, losses, leftover, iteration
        if not keep.all():
            active, w, loss, gradient = active[keep], w[keep], loss[keep], gradient[keep]
            inverse_diagonal = inverse_diagonal[keep]
            pairs = [(step[keep], change[keep], rho[keep]) for step, change, rho in pairs]
        direction = _direction(gradient, inverse_diagonal, pairs)
        new_w, loss, new_gradient, stuck = _line_search(objective, w, active, direction, loss, gradient)
        step, change = new_w - w, new_gradient - gradient
        product = (step * change).sum(1)
        rho = torch.where(product > 0, 1 / product, torch.zeros_like(product))  # 0: a pair that says nothing
        pairs = [*pairs[-_HISTORY + 1 :], (step, change, rho)]
        w, gradient = new_w, new_gradient
        solution[active], losses[active], leftover[active] = w, loss, gradient.abs().amax(1)
    return solution, losses, leftover, limit


def fit(
    features: Standardised,
    labels: Int64[Tensor, "n"],
    classes: int,
    strengths: Sequence[float],
    *,
    start: LogisticFit | None = None,
    tolerance: float = 1e-5,
    limit: int | None = None,
) -> LogisticFit:
    """Solve for every C of ``strengths``; labels run from 0 to ``classes`` - 1.

    Stops at a largest gradient component of ``tolerance`` (of the mean objective, in the rotated features), or after
    ``limit`` steps. Without a limit it is solved to the end: few images and large C, whose weights the penalty hardly
    holds, take a smaller gradient to be right, within 500 steps, or 2,000 on few images. Two classes get the binary
    model of the same C: the penalty is doubled, as the softmax splits one vector into two halves.
    """
    x = _with_one(features.values)

    def cross_entropy(w: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        return _cross_entropy(x, labels, w)

    begin = x.new_zeros(len(strengths), classes, x.shape[1])
    if start is not None:
        begin[:, :, :-1], begin[:, :, -1] = start.weights @ features.axes, start.bias
    return _fit([features], cross_entropy, begin, [strengths], tolerance, limit)[0]


def sets_at_once(images: int, width: int, classes: int, strengths: int) -> int:
    """How many sets of so many images and features :func:`fit_each` solves faster than one by one, in little memory."""
    problem = classes * max(images, 2 * _HISTORY * (width + 1))  # logits, or steps and changes
    return max(1, min(_SIDE_BY_SIDE // (strengths * images * (width + 1)), _AT_ONCE // (strengths * problem)))


def fit_each(
    sets: Sequence[Standardised],
    labels: Int64[Tensor, "n"],
    classes: int,
    strengths: Sequence[Sequence[float]],
    *,
    tolerance: float = 1e-5,
    limit: int | None = None,
) -> list[LogisticFit]:
    """:func:`fit` on several sets of as many images with the same labels, each for as many ``strengths`` of its own.

    They are solved side by side, where a step of a small set alone would be all overhead (:func:`sets_at_once`).
    """
    if len(sets) == 1:
        return [fit(sets[0], labels, classes, strengths[0], tolerance=tolerance, limit=limit)]
    x = _with_one(torch.stack([one.values for one in sets]))

    def cross_entropy(w: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        return _cross_entropy_of_sets(x[active // len(strengths[0])], labels, w)

    begin = x.new_zeros(len(sets) * len(strengths[0]), classes, x.shape[2])
    return _fit(sets, cross_entropy, begin, strengths, tolerance, limit)


def _with_one(values: Tensor) -> Tensor:
    """Features with a last one that is 1, for the intercept."""
    return torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)


def _fit(
    sets: Sequence[Standardised],
    cross_entropy: _Objective,
    begin: Tensor,
    strengths: Sequence[Sequence[float]],
    tolerance: float,
    limit: int | None,
) -> list[LogisticFit]:
    """Solve the problems "S G" from weights ``begin`` "(S G) K P", set after set; their penalties are added here."""
    problems, classes, _ = begin.shape
    penalty = begin.new_tensor(
        [[1 / (c * len(one.values)) for c in own] for one, own in zip(sets, strengths, strict=True)]
    )
    penalty = penalty.flatten() * (2 if classes == 2 else 1)
    tolerances = torch.full_like(penalty, tolerance)
    if limit is None:
        tolerances = torch.minimum(tolerances, (_SHARE_OF_PENALTY * penalty).clamp(min=_ROUNDING))
        limit = max(_STEPS, min(_MOST_STEPS, _READ // sum(one.values.numel() for one in sets)))
    free = torch.ones_like(begin[0, 0])
    free[-1] = 0
    penalty = (penalty[:, None] * free)[:, None]  # (S G) 1 P
    variance = torch.stack([torch.cat([one.variance, one.variance.new_ones(1)]) for one in sets])
    curvature = variance.repeat_interleave(problems // len(sets), 0)[:, None] / classes + penalty
    inverse_diagonal = (1 / curvature.clamp(min=1e-12)).expand(-1, classes, -1).flatten(1)

    def objective(w: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        w = w.view(len(active), classes, -1)
        shrink = penalty[active] * w
        loss, gradient = cross_entropy(w, active)
        return loss + (shrink * w).sum((1, 2), dtype=torch.float64) / 2, (gradient + shrink).flatten(1)

    w, loss, gradient, iterations = _minimise(objective, begin.flatten(1), inverse_diagonal, tolerances, limit)
    solved = zip(*(each.chunk(len(sets)) for each in (w.view_as(begin), loss, gradient)), strict=True)
    return [
        LogisticFit(
            weights=w[:, :, :-1] @ one.axes.T, bias=w[:, :, -1], loss=loss, gradient=gradient, iterations=iterations
        )
        for one, (w, loss, gradient) in zip(sets, solved, strict=True)
    ]


def predict(fitted: LogisticFit, features: Standardised, values: Float[Tensor, "m D"]) -> Int64[Tensor, "G m"]:
    """The likeliest class of each row under each of the G models, after the standardisation of ``features``."""
    scaled = (values - features.mean) / features.deviation
    return torch.stack([(scaled @ w.T + b).argmax(1) for w, b in zip(fitted.weights, fitted.bias, strict=True)])

"""How much of an accuracy is left when the test images are noisy or blurred, and only they: nothing is learned anew."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from openjepa import draws
from openjepa.data.augmentation import to_unit
from openjepa.evaluation.features import Classifier, Features
from openjepa.evaluation.intervals import wilson


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to spoil an image: ``noise`` (Gaussian, ``amount`` of the full range from black to white as its standard
    deviation) or ``blur`` (Gaussian, ``amount`` of the image's short side as its standard deviation).
    """

    kind: str
    amount: float

    @property
    def name(self) -> str:
        """As it stands in a table."""
        return f"{self.kind} {100 * self.amount:g}%"

    def __call__(self, images: Float[Tensor, "B C H W"], first: int) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1], spoilt; ``first`` is the number of the first one, from which its noise derives."""
        if self.kind == "noise":
            keys = np.arange(first, first + len(images))[:, None], np.arange(images[0].numel())
            radius = np.sqrt(-2 * np.log1p(-draws.uniform("corruption radius", *keys)))
            noise = radius * np.cos(2 * math.pi * draws.uniform("corruption angle", *keys))
            return (images + self.amount * torch.from_numpy(noise).float().view_as(images)).clamp(0, 1)
        from torchvision.transforms.v2.functional import gaussian_blur

        sigma = self.amount * min(images.shape[-2:])
        return gaussian_blur(images, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)


CORRUPTIONS = tuple(
    Corruption(kind=kind, amount=amount) for kind, amounts in (("noise", (0.1, 0.2)), ("blur", (0.04, 0.08)))
    for amount in amounts
)  # fmt: skip


def corrupted(
    batches: Iterator[tuple[Shaped[Tensor, "B C H W"], Tensor]], corruption: Corruption
) -> Iterator[tuple[Float[Tensor, "B C H W"], Tensor]]:
    """The (images, labels) with every image spoilt."""
    first = 0
    for images, labels in batches:
        yield corruption(to_unit(images), first), labels
        first += len(images)


def robustness(
    train: Features,
    clean: Features,
    spoilt: Sequence[tuple[Corruption, Features]],
    evaluators: Sequence[Classifier],
    note: Callable[[str], None] = lambda sentence: None,
) -> list[dict[str, Any]]:
    """Rows for ``evaluation.json``: accuracy of each evaluator, fitted to clean ``train``, on each spoilt test part.

    Each is fitted once and asked for all test parts together; what it does with one image does not depend on others.
    """
    parts = [("clean", clean), *((corruption.name, features) for corruption, features in spoilt)]
    every = Features(
        np.concatenate([features.values for _, features in parts]),
        np.concatenate([features.labels for _, features in parts]),
        train.name,
    )
    rows = []
    for evaluator in evaluators:
        note(f"{evaluator.name} on spoilt images")
        outcome = evaluator.classify(train, every)
        for (name, features), correct in zip(parts, np.split(outcome.correct, len(parts)), strict=True):
            low, high = wilson(int(correct.sum()), len(correct))
            rows.append(
                {
                    "task": f"robustness: {name}",
                    "features": train.name,
                    "evaluator": evaluator.name,
                    "metric": "accuracy",
                    "value": float(correct.mean()),
                    "low": low,
                    "high": high,
                    "dimensions": features.dimensions,
                    "settings": outcome.settings,
                }
            )
    return rows

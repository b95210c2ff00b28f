"""Frozen features of a set of images, and the contract that every evaluator of them keeps."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped
from torch import Tensor

from openjepa.errors import InputError
from openjepa.evaluation.intervals import wilson


@dataclass(frozen=True)
class Features:
    """One vector for each of n images, with its class (-1: none); ``name`` says whose features they are.

    Values become float32 and labels int64. Raises InputError for wrong shapes, no images, or values not finite.
    """

    values: Float[np.ndarray, "n D"]
    labels: Int[np.ndarray, "_"]  # as many as values; checked below, with the numbers in the message
    name: str

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.values, np.float32)
        labels = np.ascontiguousarray(self.labels, np.int64)
        if values.ndim != 2 or labels.ndim != 1 or len(values) != len(labels) or values.size == 0:
            raise InputError(
                f"features of {self.name!r} need shape (n, D) and labels (n,) with n and D at least 1, "
                f"got {values.shape} and {labels.shape}"
            )
        rows = int((~np.isfinite(values)).any(axis=1).sum())
        if rows:
            raise InputError(
                f"features of {self.name!r} hold NaN or infinity in {rows} of {len(values)} images; "
                "the encoder or its weights are broken"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dimensions(self) -> int:
        """Length of one vector, D."""
        return self.values.shape[1]

    def take(self, index: Int[np.ndarray, "m"]) -> "Features":
        """The features of some of the images, in that order."""
        return Features(self.values[index], self.labels[index], self.name)


@runtime_checkable
class Evaluator(Protocol):
    """Judges features: learns on ``train``, measures on ``test``, and chooses nothing by looking at ``test``."""

    @property
    def name(self) -> str:
        """As it stands in a table."""
        ...

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """Every measure M with its 95% interval as M, M_low and M_high (shares in [0, 1]); other keys are settings."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a classifier said of each test image, so that two can be compared image by image."""

    predicted: Int64[np.ndarray, "n"]
    correct: Bool[np.ndarray, "n"]
    settings: dict[str, float] = field(default_factory=dict)

    def scores(self) -> dict[str, float]:
        """``accuracy`` with its 95% Wilson interval and the settings used, as :class:`Evaluator` returns them."""
        low, high = wilson(int(self.correct.sum()), len(self.correct))
        return {"accuracy": float(self.correct.mean()), "accuracy_low": low, "accuracy_high": high, **self.settings}


@runtime_checkable
class Classifier(Evaluator, Protocol):
    """An evaluator that names a class for every test image."""

    def classify(self, train: Features, test: Features) -> Outcome:
        """The prediction for each test image; calling the evaluator returns ``classify(...).scores()``."""
        ...


Encode = Callable[[Shaped[Tensor, "B C H W"]], Float[Tensor, "B D"]]


@torch.inference_mode()
def extract(
    encoders: Mapping[str, Encode], batches: Iterable[tuple[Shaped[Tensor, "B C H W"], Int64[Tensor, "B"]]]
) -> dict[str, Features]:
    """Features of every image under each named encoder, in one pass over the (images, labels) of ``batches``.

    An encoder is any callable on a batch as it comes; it brings its own normalisation and device. Raises InputError
    when there is no image or an encoder returns values that are not finite.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    labels: list[np.ndarray] = []
    for images, targets in batches:
        labels.append(targets.cpu().numpy())
        for name, encode in encoders.items():
            values[name].append(encode(images).float().cpu().numpy())
    if not labels:
        raise InputError("there are no images to take features of")
    every = np.concatenate(labels)
    return {name: Features(np.concatenate(parts), every, name) for name, parts in values.items()}


def pixel_size(channels: int, height: int, width: int, max_dimensions: int = 3072) -> tuple[int, int]:
    """The (height, width) at which C x H x W pixels make at most ``max_dimensions`` numbers, near the aspect ratio."""
    if channels > max_dimensions:
        raise InputError(f"{channels} channels alone exceed the {max_dimensions} dimensions allowed for raw pixels")
    if channels * height * width <= max_dimensions:
        return height, width
    shrink = math.sqrt(max_dimensions / (channels * height * width))
    rows, columns = max(1, int(height * shrink)), max(1, int(width * shrink))
    # Only where a side was held at 1 can the product still be too large.
    rows = max(1, min(rows, max_dimensions // (channels * columns)))
    return rows, min(columns, max_dimensions // (channels * rows))


def raw_pixels(
    images: Shaped[Tensor, "B C H W"], max_dimensions: int = 3072
) -> tuple[Float32[Tensor, "B D"], tuple[int, int]]:
    """The pixels themselves as features (8-bit becomes [0, 1]), and the (height, width) used.

    Images with more than ``max_dimensions`` values are made smaller by averaging areas; the size returned says so.
    The default is that of a 32 x 32 colour image.
    """
    values = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    _, channels, height, width = images.shape
    size = pixel_size(channels, height, width, max_dimensions)
    if size != (height, width):
        values = torch.nn.functional.adaptive_avg_pool2d(values, size)
    return values.flatten(1), size

"""Frozen features of a set of images, and the contracts that evaluators of them keep."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int, Int64, Shaped
from torch import Tensor

from openjepa.errors import InputError
from openjepa.evaluation.intervals import crossed_mean, equal_grades

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Features:
    """One vector for each of n images, with its class (-1: none); ``name`` says whose features they are.

    Values become float32 and labels int64. Raises InputError for wrong shapes, no images, values that are not finite
    real numbers, or labels that are not whole ones.
    """

    # Of what kind and how many they are is checked below, with the numbers in the message.
    values: Shaped[np.ndarray, "n D"]
    labels: Shaped[np.ndarray, "_"]
    name: str

    def __post_init__(self) -> None:
        if np.asarray(self.values).dtype.kind not in "fiu":
            kind = np.asarray(self.values).dtype
            raise InputError(f"features of {self.name!r} are {kind}; real numbers are wanted")
        values = np.ascontiguousarray(self.values, np.float32)
        labels = whole_labels(self.labels, self.name)
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


def whole_labels(labels: Shaped[np.ndarray, "_"], name: str) -> Int64[np.ndarray, "_"]:
    """Labels as int64 (InputError where they are no whole numbers, or too large): no class is made of another."""
    given = np.asarray(labels)
    if given.dtype.kind not in "biuf":
        raise InputError(
            f"labels of {name!r} are {given.dtype}; whole numbers are wanted, such as the second of "
            "np.unique(labels, return_inverse=True)"
        )
    with np.errstate(invalid="ignore"):
        found = np.ascontiguousarray(given, np.int64)
    wrong = (found != given) | ((found < 0) & (given > 0))
    if wrong.any():
        raise InputError(
            f"labels of {name!r} are whole numbers below 2^63, -1 for none, and {int(wrong.sum())} of {len(given)} are "
            f"not, for example {given[wrong][0]}"
        )
    return found


@dataclass(frozen=True)
class Tokens:
    """Every token's features of n images, in half precision to save memory, with their classes.

    Raises InputError for wrong shapes, values that are not finite (also those beyond half precision's 65,504), or
    labels that are not whole numbers.
    """

    values: Float16[np.ndarray, "n N D"]
    labels: Shaped[np.ndarray, "_"]
    name: str

    def __post_init__(self) -> None:
        values, labels = np.asarray(self.values), whole_labels(self.labels, self.name)
        if values.ndim != 3 or labels.ndim != 1 or len(values) != len(labels):
            raise InputError(
                f"token features of {self.name!r} need shape (n, N, D) and labels (n,), got {values.shape} and "
                f"{labels.shape}"
            )
        with np.errstate(over="ignore"):
            object.__setattr__(self, "values", values.astype(np.float16, copy=False))
        object.__setattr__(self, "labels", labels)
        rows = int((~np.isfinite(self.values)).any(axis=(1, 2)).sum())
        if rows or not self.values.size:
            raise InputError(
                f"token features of {self.name!r} hold NaN, infinity or values beyond 65,504 in {rows} of "
                f"{len(self.values)} images; the encoder or its weights are broken"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def dimensions(self) -> int:
        """Length of one token's vector, D."""
        return self.values.shape[2]

    def take(self, index: Int[np.ndarray, "m"]) -> "Tokens":
        """The tokens of some of the images, in that order."""
        return Tokens(self.values[index], self.labels[index], self.name)


Part = Features | Tokens


@runtime_checkable
class Evaluator(Protocol):
    """Judges features: learns on ``train``, measures on ``test``, and chooses nothing by looking at ``test``."""

    @property
    def name(self) -> str:
        """As it stands in a table."""
        ...

    def __call__(self, train: Any, test: Any) -> dict[str, float]:
        """Of two :class:`Features`, or two :class:`Tokens` where it reads those.

        Every measure M with its 95% interval as M, M_low and M_high (shares in [0, 1]); other keys are settings."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a classifier said of each test image, so that two can be compared image by image.

    ``also`` holds which answers were right under other settings, by the name of the measure.
    """

    predicted: Int64[np.ndarray, "n"]
    correct: Bool[np.ndarray, "n"]
    settings: dict[str, float] = field(default_factory=dict)
    also: dict[str, Bool[np.ndarray, "n"]] = field(default_factory=dict)

    def scores(self) -> dict[str, float]:
        """``accuracy`` (and ``also``) with 95% Wilson intervals, and settings, as :class:`Evaluator` returns them."""
        return shares_of({"accuracy": self.correct, **self.also}) | self.settings


def shares_of(correct: Mapping[str, Bool[np.ndarray, "n"]], worth: int | float = 1) -> dict[str, float]:
    """The share of right answers of every measure, with its 95% Wilson interval as M_low and M_high.

    ``worth`` is that of an image in the intervals (:mod:`openjepa.evaluation.intervals`)."""
    found: dict[str, float] = {}
    for name, right in correct.items():
        share = float(right.mean())
        low, high = equal_grades(share, worth * len(right))
        found |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return found


@runtime_checkable
class Classifier(Evaluator, Protocol):
    """An evaluator that names a class for every test image."""

    def classify(self, train: Any, test: Any) -> Outcome:
        """The prediction for each test image; calling the evaluator returns ``classify(...).scores()``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Grades:
    """A number for each test image under each of R draws of the training images, for every measure (R is often 1)."""

    measures: dict[str, Float[np.ndarray, "_R n"]]
    settings: dict[str, float] = field(default_factory=dict)

    def scores(self, worth: int | float = 1) -> dict[str, float]:
        """Each measure's mean with a 95% interval over draws and test images, and the settings used."""
        found: dict[str, float] = {}
        for name, grades in self.measures.items():
            value, low, high = crossed_mean(grades, worth)
            # Grades are shares: an interval of a mean near an end must not leave [0, 1].
            found |= {name: value, f"{name}_low": max(0.0, low), f"{name}_high": min(1.0, high)}
        return found | self.settings


@runtime_checkable
class Grader(Evaluator, Protocol):
    """An evaluator that gives every test image a number in [0, 1] other than right or wrong."""

    def grade(self, train: Any, test: Any) -> Grades:
        """The grade of each test image; calling the evaluator returns ``grade(...).scores()``."""
        ...


@contextmanager
def with_gradients() -> Iterator[None]:
    """Training inside an evaluator, also where whoever calls it has gradients switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@torch.inference_mode()
def extract(
    encode: Callable[[Shaped[Tensor, "B C H W"]], Mapping[Name, Tensor]],
    batches: Iterable[tuple[Shaped[Tensor, "B C H W"], Int64[Tensor, "B"]]],
) -> dict[Name, Features]:
    """Features of every image, by name, in one pass over the (images, labels) of ``batches``.

    ``encode`` is any callable on a batch as it comes, which gives "B D" for each name; it brings its own normalisation
    and device. Raises InputError when there is no image or it returns values that are not finite.
    """
    values: dict[Name, list[np.ndarray]] = {}
    labels: list[np.ndarray] = []
    for images, targets in batches:
        # Copies: a loader or an encoder may fill the same memory again.
        labels.append(targets.cpu().numpy().copy())
        for name, given in encode(images).items():
            values.setdefault(name, []).append(given.float().cpu().numpy().copy())
    if not labels:
        raise InputError("there are no images to take features of")
    every = np.concatenate(labels)
    return {name: Features(np.concatenate(parts), every, str(name)) for name, parts in values.items()}


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


def as_floats(images: Shaped[Tensor, "B C H W"]) -> Float32[Tensor, "B C H W"]:
    """Images as they are stored as floats: 8-bit ones from 0 to 1, others as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def raw_pixels(
    images: Shaped[Tensor, "B C H W"], max_dimensions: int = 3072
) -> tuple[Float32[Tensor, "B D"], tuple[int, int]]:
    """The pixels themselves as features (8-bit becomes [0, 1]), and the (height, width) used.

    Images with more than ``max_dimensions`` values are made smaller by averaging areas; the size returned says so.
    The default is that of a 32 x 32 colour image.
    """
    values = as_floats(images)
    _, channels, height, width = images.shape
    size = pixel_size(channels, height, width, max_dimensions)
    if size != (height, width):
        values = torch.nn.functional.adaptive_avg_pool2d(values, size)
    return values.flatten(1), size


def patch_pixels(
    images: Float[Tensor, "B C H W"], grid: tuple[int, int], max_dimensions: int = 3072
) -> Float[Tensor, "B N P"]:
    """The pixels of every patch of a grid (rows, columns) that divides the images evenly, in raster order.

    Patches with more than ``max_dimensions`` values are made smaller by averaging areas.
    """
    channels, height, width = images.shape[1:]
    rows, columns = grid
    patch = height // rows, width // columns
    inner = pixel_size(channels, *patch, max_dimensions)
    if inner != patch:
        images = torch.nn.functional.adaptive_avg_pool2d(images, (rows * inner[0], columns * inner[1]))
    return torch.nn.functional.unfold(images, inner, stride=inner).mT

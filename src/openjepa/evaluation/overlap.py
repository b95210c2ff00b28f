"""Mean intersection over union of segmentations, with a 95% interval over the test images.

Intersections and unions are summed over the images before they are divided (Everingham et al. 2015, sec. 4.3.3), so a
class that is rare in one image does not weigh as much as where it is common. Intervals are Student's t with the
standard error of the bootstrap over images (Efron 1979): pixels of one image are no independent observations, and
percentiles of the bootstrap are far too narrow for few images. K classes, n images.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64, Integer
from torch import Tensor

from openjepa import draws
from openjepa.evaluation.intervals import NO_SPREAD, Difference, equal_differences, equal_grades

IGNORE = 255


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Pixels of each class, image by image: named so and right (intersection), named so or labelled so (union)."""

    intersection: Int64[np.ndarray, "n K"]
    union: Int64[np.ndarray, "n K"]

    @classmethod
    def of(cls, predicted: Int[Tensor, "n H W"], masks: Integer[Tensor, "n H W"], classes: int) -> "Overlap":
        """Count the pixels of images; those labelled IGNORE, or with no class at all, are left out.

        Raises ValueError for predictions that are none of the ``classes``.
        """
        known = (masks >= 0) & (masks < classes)
        if predicted.numel() and not 0 <= int(predicted.min()) <= int(predicted.max()) < classes:
            raise ValueError(f"{classes} classes are 0 to {classes - 1}, and pixels are called {predicted.unique()}")
        cell = masks.long() * classes + predicted
        image = torch.arange(len(masks), device=masks.device)[:, None, None] * classes**2
        counts = torch.bincount((image + cell)[known], minlength=len(masks) * classes**2)
        confusion = counts.view(len(masks), classes, classes).cpu().numpy()
        right = np.diagonal(confusion, axis1=1, axis2=2).copy()
        return cls(intersection=right, union=confusion.sum(1) + confusion.sum(2) - right)

    @classmethod
    def joined(cls, parts: "list[Overlap]") -> "Overlap":
        """The images of all parts, in their order."""
        return cls(
            intersection=np.concatenate([part.intersection for part in parts]),
            union=np.concatenate([part.union for part in parts]),
        )

    def iou(self) -> Float64[np.ndarray, "K"]:
        """Of each class, both summed over the images; NaN for a class that is nowhere."""
        union = self.union.sum(0)
        return np.where(union > 0, self.intersection.sum(0) / np.maximum(union, 1), np.nan)

    def miou(self) -> float:
        """The mean over the classes that are somewhere (ValueError if none is)."""
        iou = self.iou()
        if np.isnan(iou).all():
            raise ValueError("mIoU needs at least one labelled pixel")
        return float(np.nanmean(iou))

    def resampled(self, count: int = 2000, seed: int = 0) -> Float64[np.ndarray, "count"]:
        """mIoU of ``count`` draws of as many images, with replacement; the same images for the same seed."""
        images = len(self.union)
        drawn = (draws.uniform("dense bootstrap", seed, np.arange(count)[:, None], np.arange(images)) * images).astype(
            int
        )
        times = np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.float64)
        intersection, union = times @ self.intersection, times @ self.union
        seen = union > 0
        iou = np.where(seen, intersection / np.maximum(union, 1), 0)
        return iou.sum(1) / np.maximum(seen.sum(1), 1)

    def interval(self, worth: int | float = 1) -> tuple[float, float]:
        """How far mIoU would move with another draw of test images, 95%; from 0 to 1 for one image.

        Images that are all alike, as where all is right, have at least the interval of a proportion of as many.
        ``worth`` is what :mod:`openjepa.evaluation.intervals` says.
        """
        value, resampled = self.miou(), self.resampled()
        low, high = _about(value, resampled, len(self.union), worth)
        if resampled.var() <= NO_SPREAD:
            least = equal_grades(value, worth * len(self.union))
            low, high = min(low, least[0]), max(high, least[1])
        return max(low, 0.0), min(high, 1.0)

    def difference(self, against: "Overlap", worth: int | float = 1) -> Difference:
        """How much larger mIoU is than another's on the same images, with the interval of the paired bootstrap."""
        if self.union.shape != against.union.shape:
            raise ValueError(
                f"mIoU of {self.union.shape} and of {against.union.shape} images and classes can't be paired"
            )
        value, resampled = self.miou() - against.miou(), self.resampled() - against.resampled()
        low, high = _about(value, resampled, len(self.union), worth)
        if resampled.var() <= NO_SPREAD:
            least = equal_differences(value, worth * len(self.union))
            low, high = min(low, least.low), max(high, least.high)
        return Difference(value=value, low=max(low, -1.0), high=min(high, 1.0))


def _about(
    value: float, resampled: Float64[np.ndarray, "count"], images: int, worth: int | float
) -> tuple[float, float]:
    """The value's 95% interval by its resampled values."""
    if images < 2:
        return -math.inf, math.inf
    from scipy.stats import t

    # A draw with replacement varies by (n - 1) / n of what a fresh one does.
    half = float(t.ppf(0.975, images - 1) * resampled.std() * math.sqrt(images / (images - 1) / worth))
    return value - half, value + half

"""Pixel R2: what of the pictures an embedding still holds where a linear map can read it, without labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# Pixels on a side of the pictures whose components are told: large areas are what these are of.
_SIDE = 16
_COMPONENTS = 8
# Components with less than this share of the pictures' variance may be noise, and are left out.
_LEAST = 1e-3
# Tried as ridge, in shares of the variance of a feature: from next to none to where nothing is told.
_RIDGES = tuple(10.0 ** (power / 2) for power in range(-8, 5))


def thumbnails(pictures: Float[Tensor, "n C H W"]) -> Float[Tensor, "n P"]:
    """Versions of at most 16x16 pixels, each a row of their P values."""
    _, _, height, width = pictures.shape
    return F.adaptive_avg_pool2d(pictures, (min(_SIDE, height), min(_SIDE, width))).flatten(1)


def components(small: Float[Tensor, "n P"]) -> Float[Tensor, "n K"]:
    """The eight strongest principal components of :func:`thumbnails`, each with mean 0 and variance 1 over the images.

    Fewer, or none, where the pictures do not differ in so many ways.
    """
    exact = small.double()
    centred = exact - exact.mean(0)
    variances, directions = torch.linalg.eigh(centred @ centred.T)
    least = max(_LEAST * float(variances.sum()), 1e-12 * float(exact.square().sum()))
    strong = variances[-_COMPONENTS:] > least
    return directions[:, -_COMPONENTS:][:, strong].flip(1) * len(exact) ** 0.5


def pixel_r2(values: Float[Tensor, "n D"], wanted: Float[Tensor, "n K"]) -> float:
    """How much of :func:`components` features tell by ridge regression: the mean of the R2 of each, between 0 and 1.

    Every image is told by what was fitted to all others (PRESS, Allen 1974), on standardised features and with the
    ridge that does so best. A linear probe of an untrained encoder lives on what this measures, and an encoder that
    falls far below it has lost it (benchmarks/collapse). With fewer images than 2.5 for each feature it says more of
    the features' number than of what they hold.

    Raises:
        ValueError: fewer than 2 images, or no component.
    """
    if len(values) < 2 or not wanted.shape[1]:
        raise ValueError(f"pixel R2 needs 2 images and a component, got {len(values)} and {wanted.shape[1]}")
    exact = values.detach().double()
    centred = exact - exact.mean(0)
    # Features come in float32: what is below its rounding says nothing.
    rounding = torch.finfo(torch.float32).eps * exact.square().mean().sqrt()
    deviation = centred.square().mean(0).sqrt()
    scaled = centred / deviation.masked_fill(deviation <= rounding, torch.inf)
    variances, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    turned = scaled @ directions
    along, strength = turned.T @ wanted / len(turned), turned.square() / len(turned)
    best = 0.0
    for ridge in _RIDGES:
        shrunk = 1 / (variances.clamp(min=0) + ridge)
        leverage = 1 / len(turned) + strength @ shrunk
        missed = (wanted - turned @ (shrunk[:, None] * along)) / (1 - leverage).clamp(min=1e-9)[:, None]
        best = max(best, 1 - float(missed.square().mean()))  # every component has variance 1
    return best

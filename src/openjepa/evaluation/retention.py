"""What of the pictures an embedding still holds where a linear map can read it, without labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openjepa import draws

# Pixels on a side of the pictures whose components are told: large areas are what these are of.
_SIDE = 16
_COMPONENTS = 8
# The share of a feature's variance (1, once standardised) that ridge regression adds to it.
_RIDGE = 0.1


def thumbnails(pictures: Float[Tensor, "n C H W"]) -> Float[Tensor, "n P"]:
    """Versions of at most 16x16 pixels, each a row of their P values."""
    _, _, height, width = pictures.shape
    return F.adaptive_avg_pool2d(pictures, (min(_SIDE, height), min(_SIDE, width))).flatten(1)


def components(small: Float[Tensor, "n P"]) -> Float[Tensor, "n K"]:
    """The eight strongest principal components of :func:`thumbnails`, each with mean 0 and variance 1 over the images.

    Fewer, or none, where the pictures do not differ in so many ways.
    """
    exact = small.double()
    directions, spread, _ = torch.linalg.svd(exact - exact.mean(0), full_matrices=False)
    differing = int((spread > 1e-6 * exact.norm()).sum())
    return directions[:, : min(_COMPONENTS, differing)] * len(exact) ** 0.5


def pixel_r2(values: Float[Tensor, "n D"], wanted: Float[Tensor, "n K"]) -> float:
    """The share of the variance of the pictures' :func:`components` that features tell, by ridge regression.

    Each half of the images is told by what was fitted to the other, on standardised features. At most 1; about 0 for
    features that say the same of all. A linear probe of an untrained encoder lives on what this measures, and an
    encoder that falls far below it has lost it (benchmarks/collapse).

    Raises:
        ValueError: fewer than 4 images, or no component.
    """
    if len(values) < 4 or not wanted.shape[1]:
        raise ValueError(f"pixel R2 needs 4 images and a component, got {len(values)} and {wanted.shape[1]}")
    exact = values.detach().double()
    one, other = torch.from_numpy(draws.permutation(len(values), "pixel r2")).to(values.device).tensor_split(2)
    missed = sum(_missed(exact, wanted, learn, test) for learn, test in ((one, other), (other, one)))
    return 1 - float(missed) / wanted.numel()  # every component has variance 1


def _missed(values: Tensor, wanted: Tensor, learn: Tensor, test: Tensor) -> Tensor:
    """The squares of what ridge regression misses in half of the images, added up."""
    deviation, mean = torch.std_mean(values[learn], 0, correction=0)
    constant = deviation <= 1e-6 * mean.abs()  # but for its rounding
    scaled = (values - mean) / deviation.masked_fill(constant, torch.inf)
    x, centre = scaled[learn], wanted[learn].mean(0)
    gram = x.T @ x / len(x) + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram, x.T @ (wanted[learn] - centre) / len(x))
    return (wanted[test] - centre - scaled[test] @ weights).square().sum()

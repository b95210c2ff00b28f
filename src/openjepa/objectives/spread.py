"""How features spread: VICReg's variance and covariance terms, which keep them from shrinking and from repeating one
another, and the shares of places and of images in their variance, to watch.

Source: Bardes, Ponce and LeCun 2022 (arXiv 2105.04906), sec. 4.1, eq. 1 to 4; beside I-JEPA: C-JEPA (Mo and Tong 2024,
arXiv 2410.19560).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_EPS = 1e-4


@torch.no_grad()
def moments(features: Float[Tensor, "R D"]) -> Float[Tensor, "D+2 D"]:
    """What the terms need to know of all features of a step, as sums that add up over parts of it.

    The sum of the products of every two features, their own sums, and (in every entry of the last row) their number.
    """
    z = features.double()
    return torch.cat([z.T @ z, z.sum(0, keepdim=True), torch.full_like(z[:1], len(z))])


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def variance_covariance(
    features: Float[Tensor, "R D"], whole: Float[Tensor, "D+2 D"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How far the standard deviations of the features fall short of 1 (mean over D), and the sum of the squared
    covariances between different features over D, for the whole step.

    ``whole`` holds the :func:`moments` of all features of the step, ``features`` those of a part. The values are the
    whole step's; the gradient is such that its mean over equal parts is the whole step's, whoever computed them.
    """
    width = features.shape[1]
    count, total = whole[-1, 0], whole[-2]
    mean = total / count
    covariance = (whole[:-2] - torch.outer(total, mean)) / (count - 1).clamp(min=1)
    spread = (covariance.diagonal() + _EPS).sqrt()
    others = covariance - torch.diag(covariance.diagonal())
    values = F.relu(1 - spread).mean(), others.square().sum() / width
    # Both are functions of the covariance, which is a mean over images; here are their slopes along it.
    z = features.double() - mean
    scale = count / (count - 1).clamp(min=1)
    slopes = (
        -(z.square() * ((spread < 1) / (2 * spread))).sum(1).mean() * scale / width,
        2 * ((z @ others) * z).sum(1).mean() * scale / width,
    )
    variance, covariance = (
        (value + slope - slope.detach()).float() for value, slope in zip(values, slopes, strict=True)
    )
    return variance, covariance


@torch.no_grad()
def spread_by_place(
    values: Float[Tensor, "R M T O"], at: Int[Tensor, "R M T"], tokens: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The variance of what stands at the places ``at`` of a grid of ``tokens``: over images, and over positions.

    The first is the variance about the mean of the same place; the second that of the places' means, less what a mean
    of few values varies by itself (one-way analysis of variance with random effects, Searle 1971, ch. 11), so that it
    is 0 for features that know nothing of their place, whatever the batch. Both are means over the O features.
    """
    flat, index = values.flatten(0, 2).float(), at.flatten()
    sums = flat.new_zeros(tokens, flat.shape[1]).index_add_(0, index, flat)
    count = flat.new_zeros(tokens).index_add_(0, index, torch.ones_like(index, dtype=flat.dtype))
    means = sums / count.clamp(min=1)[:, None]
    used = (count > 0).sum()
    over_images = (flat - means[index]).square().sum(0) / (len(flat) - used).clamp(min=1)
    between = (count[:, None] * (means - flat.mean(0)).square()).sum(0)
    each = (len(flat) - count.square().sum() / len(flat)).clamp(min=1)  # values per place, times the places less one
    over_positions = ((between - (used - 1) * over_images) / each).clamp(min=0)
    return over_images.mean(), over_positions.mean()


def places_and_images(
    target: Float[Tensor, "R M T O"], predicted: Float[Tensor, "R M T O"], at: Int[Tensor, "R M T"], tokens: int
) -> dict[str, Float[Tensor, ""]]:
    """:func:`spread_by_place` of what is predicted and of the predictions, as rows of the run's log name them."""
    rows = {}
    for name, values in (("target", target), ("predicted", predicted)):
        by_image, by_place = spread_by_place(values, at, tokens)
        rows |= {f"{name}_over_images": by_image, f"{name}_over_positions": by_place}
    return rows

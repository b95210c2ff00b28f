"""95% intervals of accuracies and other means, and of the difference of two on the same test images.

They cover the choice of test images, not of the training seed (but for :func:`difference_of_runs`): another training
run can differ by more.
``worth`` is how many images, none of which depends on another, an image counts for: less than one where they do
(:data:`openjepa.evaluation.folds.WORTH`).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float

Z95 = NormalDist().inv_cdf(0.975)
# The variance that rounding alone leaves of equal numbers.
NO_SPREAD = 1e-24


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95% score interval of a proportion, in [0, 1] (Wilson 1927); it holds for few images and near 0 and 1 too.

    Raises ValueError unless 0 <= hits <= total and total >= 1.
    """
    if total < 1 or not 0 <= hits <= total:
        raise ValueError(f"a proportion needs 0 <= hits <= total and total >= 1, got {hits} of {total}")
    return equal_grades(hits / total, total)


def wilson_of_groups(right: Bool[np.ndarray, "n K"], worth: int | float = 1) -> tuple[float, float]:
    """The 95% interval of the share of right answers where each of n images was asked about K times.

    Wilson's, for as many answers as would have the images' spread if none depended on another (the effective sample
    size of Korn and Graubard 1998): at least n, as where an image's answers are all alike, and never more than there
    are. An image all right and one all wrong are added to those by which the spread is measured: of few images whose
    answers happen not to be alike it would say too little. Raises ValueError for no images.
    """
    images, each = right.shape
    if images < 1 or each < 1:
        raise ValueError(f"a proportion needs an image and an answer at least, got {images} and {each}")
    own = right.mean(1)
    share = (float(own.sum()) + 1) / (images + 2)
    return equal_grades(float(own.mean()), worth * _independent(own, (0.0, 1.0), share * (1 - share), each))


def _independent(own: Float[np.ndarray, "n"], added: tuple[float, float], variance: float, each: int) -> float:
    """How many answers, none of which depends on another, say as much as ``each`` of n images do.

    Args:
        own: the mean answer of every image.
        added: those of two more, by which few images do not seem more alike than they are.
        variance: of one answer.
    """
    images, spread = len(own), np.append(own, added).var(ddof=1)
    return float(min(max(images * variance / spread, images), images * each))


def equal_grades(share: float, images: int | float) -> tuple[float, float]:
    """The 95% interval of a mean in [0, 1] that all images have alike, as where all is right: Wilson's.

    Their own spread is 0, which of few images says no more than that the true one is small; that of a proportion is the
    largest which numbers with this mean can have.
    """
    z2 = Z95**2
    centre = (share + z2 / (2 * images)) / (1 + z2 / images)
    half = Z95 / (1 + z2 / images) * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    # At the two ends the interval touches the share; rounding must not push it past.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much more often one side is right than the other, as a share in [-1, 1], with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "above" or "below" where the interval leaves zero out, else "unclear"."""
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "unclear"


def paired_difference(
    correct: Bool[np.ndarray, "n *K"], against: Bool[np.ndarray, "n *K"], worth: int | float = 1, *, among: int = 1
) -> Difference:
    """The difference of two accuracies measured on the same images, with its 95% interval.

    Adjusted Wald interval for paired proportions (Bonett and Price 2012): like McNemar's test it uses only the images
    on which the two disagree, so it is narrower than comparing two separate intervals. Where each image was asked about
    K times, it is that of as many answers as would have the images' spread if none depended on another, an image won
    whole and one lost whole added to them (:func:`wilson_of_groups`). ``among`` so many differences, of which one is
    picked, all intervals hold at once 95 times of 100 (Bonferroni). Raises ValueError for no images.
    """
    if correct.size < 1:
        raise ValueError("a difference needs at least one test image, got 0")
    wins, losses = int((correct & ~against).sum()), int((against & ~correct).sum())
    images, each = len(correct), correct.size // len(correct)
    if each == 1:
        return adjusted_wald(worth * wins, worth * losses, worth * images, among)
    apart = (correct.astype(np.float64) - against).reshape(images, each).mean(1)
    more, fewer = ((count / each + 1) / (images + 2) for count in (wins, losses))
    answers = worth * _independent(apart, (1.0, -1.0), more + fewer - (more - fewer) ** 2, each)
    return adjusted_wald(wins * answers / correct.size, losses * answers / correct.size, answers, among)


def difference_of_runs(
    shares: Float[np.ndarray, "A n"], against: Float[np.ndarray, "B n"], worth: int | float = 1
) -> Difference:
    """The difference of two means, over A runs and over B others, of shares measured on the same n images, with its 95%
    interval.

    The runs (training seeds) are a sample on each side, the images one that both sides share: the variance is that of
    the runs' means as Welch (1947) has it, plus that of the images' differences over n, less what both count, and t has
    the degrees of freedom of Satterthwaite (1946), as in :func:`crossed_mean`. An image won whole and one lost whole
    are added to those by which the spread over images is measured: few may happen not to differ. Raises ValueError for
    fewer than two runs on a side or fewer than two images.
    """
    images = shares.shape[1]
    if images < 2 or min(len(shares), len(against)) < 2:
        raise ValueError(
            f"a difference over runs and images needs two runs on each side and two images, got {len(shares)}, "
            f"{len(against)} and {images}"
        )
    from scipy.stats import t

    by_run, both, weight = 0.0, 0.0, 0.0
    for side in (shares, against):
        own = float(side.mean(1).var(ddof=1)) / len(side)
        rest = side - side.mean(0) - side.mean(1, keepdims=True) + side.mean()
        both += float((rest**2).sum()) / ((len(side) - 1) * (images - 1)) / side.size
        by_run, weight = by_run + own, weight + own**2 / (len(side) - 1)
    apart = np.append(shares.mean(0) - against.mean(0), (1.0, -1.0))
    by_image = float(apart.var(ddof=1)) / (worth * images)
    variance = max(by_run + by_image - both, by_run, by_image)
    freedom = variance**2 / (weight + by_image**2 / (images - 1))
    half = float(t.ppf(0.975, max(freedom, 1.0))) * math.sqrt(variance)
    value = float(shares.mean() - against.mean())
    return Difference(value=value, low=value - half, high=value + half)


def equal_differences(value: float, images: int | float) -> Difference:
    """A difference of means in [0, 1] that all images have alike, with the interval of :func:`paired_difference` for
    as many wins (or losses) more as make it up (:func:`equal_grades` says why)."""
    return adjusted_wald(images * max(value, 0.0), images * max(-value, 0.0), images)


def adjusted_wald(wins: int | float, losses: int | float, total: int | float, among: int = 1) -> Difference:
    """The difference of two accuracies on ``total`` images, of so many wins and losses (:func:`paired_difference`)."""
    value = (wins - losses) / total
    more, fewer = (wins + 1) / (total + 2), (losses + 1) / (total + 2)
    half = NormalDist().inv_cdf(1 - 0.025 / among) * math.sqrt((more + fewer - (more - fewer) ** 2) / (total + 2))
    centre = more - fewer
    return Difference(value=value, low=min(value, max(-1.0, centre - half)), high=max(value, min(1.0, centre + half)))


def crossed_mean(grades: Float[np.ndarray, "R n"], worth: int | float = 1) -> tuple[float, float, float]:
    """The mean of a number in [0, 1] measured on n test images under each of R draws, with its 95% interval.

    Both the draws and the images are samples, crossed with each other: the variance of the mean is that of the draws'
    means over R, plus that of the images' means over n, less what both count (Cornfield and Tukey 1956), and t has the
    degrees of freedom of Satterthwaite (1946). With one draw only the images vary. Images that all have the same mean
    have at least the interval of :func:`equal_grades`; one image has an infinite one. Raises ValueError for none.
    """
    value, low, high, alike = _crossed(grades, worth)
    least = equal_grades(value, worth * grades.shape[1]) if alike else (low, high)
    return value, min(low, least[0]), max(high, least[1])


def _crossed(grades: Float[np.ndarray, "R n"], worth: int | float) -> tuple[float, float, float, bool]:
    """:func:`crossed_mean` by the grades' own spread, and whether all images have the same mean."""
    draws, images = grades.shape
    if images < 1 or draws < 1:
        raise ValueError(f"an interval of a mean needs at least 1 image and 1 draw, got {images} and {draws}")
    from scipy.stats import t

    value = float(grades.mean())
    if images == 1:
        return value, -math.inf, math.inf, False
    by_image = float(grades.mean(0).var(ddof=1)) / images
    alike = by_image <= NO_SPREAD
    if draws == 1:
        half = float(t.ppf(0.975, images - 1)) * math.sqrt(by_image / worth)
        return value, value - half, value + half, alike
    by_draw = float(grades.mean(1).var(ddof=1)) / draws
    rest = grades - grades.mean(0) - grades.mean(1, keepdims=True) + value
    both = float((rest**2).sum()) / ((draws - 1) * (images - 1)) / (draws * images)
    variance = max(by_draw + by_image - both, by_draw, by_image)
    weight = by_draw**2 / (draws - 1) + by_image**2 / (images - 1)
    freedom = variance**2 / weight if weight else draws - 1
    half = float(t.ppf(0.975, max(freedom, 1.0))) * math.sqrt(variance / worth)
    return value, value - half, value + half, alike


def graded_difference(
    grades: Float[np.ndarray, "R n"], against: Float[np.ndarray, "R n"], worth: int | float = 1
) -> Difference:
    """The difference of two means on the same images and draws, with its 95% interval (:func:`crossed_mean`); where all
    images have the same, it has at least that of :func:`equal_differences`."""
    value, low, high, alike = _crossed(grades - against, worth)
    if alike:
        least = equal_differences(value, worth * grades.shape[1])
        low, high = min(low, least.low), max(high, least.high)
    return Difference(value=value, low=low, high=high)

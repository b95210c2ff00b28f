"""Balanced accuracy: the mean over classes of the share of right answers, for images most of which are of one class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from openjepa.evaluation.features import Evaluator, Part
from openjepa.evaluation.intervals import Difference, adjusted_wald, equal_grades
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.suite import Found, Judge

METRIC = "balanced accuracy"


def balanced_accuracy(
    right: Bool[np.ndarray, "n"], labels: Int64[np.ndarray, "n"], worth: int | float = 1
) -> tuple[float, float, float]:
    """The mean over the classes that occur of the share of their images answered rightly, with its 95% interval.

    The variance is the mean of those of the classes' shares over the number of classes. The interval is Wilson's of as
    many images as would have this variance if all were of one class (:mod:`openjepa.evaluation.intervals` says what
    ``worth`` is); for the variance one right and one wrong answer are added to every class, of which few may happen to
    be answered alike. Raises ValueError for no images.
    """
    if not len(labels):
        raise ValueError("a balanced accuracy needs at least one test image, got 0")
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    hits = np.bincount(codes, right)
    value, near = float((hits / counts).mean()), (hits + 1) / (counts + 2)
    variance = float((near * (1 - near) / counts).mean()) / len(counts)
    images = float(near.mean() * (1 - near.mean())) / variance
    return value, *equal_grades(value, worth * images)


def balanced_difference(
    right: Bool[np.ndarray, "n"], against: Bool[np.ndarray, "n"], labels: Int64[np.ndarray, "n"], worth: int | float = 1
) -> Difference:
    """The difference of two balanced accuracies measured on the same images, with its 95% interval.

    That of :func:`openjepa.evaluation.intervals.paired_difference`, of as many images as would have its variance if all
    were of one class (:func:`balanced_accuracy`): to every class one win and one loss are added for the variance.
    Raises ValueError for no images.
    """
    if not len(labels):
        raise ValueError("a difference needs at least one test image, got 0")
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wins, losses = (np.bincount(codes, each) for each in (right & ~against, against & ~right))
    more, fewer = (wins + 1) / (counts + 2), (losses + 1) / (counts + 2)
    variance = float(((more + fewer - (more - fewer) ** 2) / counts).mean()) / len(counts)
    of_one = float(more.mean() + fewer.mean() - (more.mean() - fewer.mean()) ** 2)
    won, lost = (float((each / counts).mean()) for each in (wins, losses))
    images = worth * of_one / variance
    return adjusted_wald(images * won, images * lost, images)


@dataclass(frozen=True, kw_only=True)
class _Balanced(Found):
    """A result with the classes of the test images."""

    labels: Int64[np.ndarray, "n"]

    def differences(self, other: Found) -> dict[str, Difference]:
        balanced = balanced_difference(self.correct["accuracy"], other.correct["accuracy"], self.labels, self.worth)
        return super().differences(other) | {METRIC: balanced}


def with_balance(judged: Judge) -> Judge:
    """A judge that tells of k-NN and the linear probes the balanced accuracy too, and the difference of two."""

    def both(evaluator: Evaluator, train: Part, test: Part) -> Found:
        found = judged(evaluator, train, test)
        if not isinstance(evaluator, KNN | LinearProbe):
            return found
        value, low, high = balanced_accuracy(found.correct["accuracy"], test.labels, found.worth)
        scores = found.scores | {METRIC: value, f"{METRIC}_low": low, f"{METRIC}_high": high}
        return _Balanced(**(vars(found) | {"scores": scores, "labels": test.labels}))

    return both

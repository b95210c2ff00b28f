"""The comparison: every evaluator on the encoder, on a random one of its shape and on raw pixels, and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from openjepa import draws
from openjepa.evaluation.features import Classifier, Evaluator, Features
from openjepa.evaluation.intervals import Difference, paired_difference
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.spectrum import RANKME_IMAGES, rankme
from openjepa.evaluation.split import check_parts

TARGET, RANDOM, PIXELS = "target encoder", "random encoder", "raw pixels"
BASELINES = (RANDOM, PIXELS)
_CALLED = {RANDOM: "a random encoder", PIXELS: "raw pixels"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measured difference: ``features`` against a baseline on one evaluator, image by image."""

    features: str
    against: str
    evaluator: str
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the evaluators found; ``rows`` and ``spectrum`` are the entries of ``evaluation.json``."""

    rows: list[dict[str, Any]]
    comparisons: tuple[Comparison, ...]
    spectrum: dict[str, dict[str, float]]

    def sentence(self, evaluator: str, features: str = TARGET) -> str:
        """What one evaluator says of ``features`` beside the baselines (KeyError if it did not run)."""
        scores = {row["features"]: row["value"] for row in self.rows if row["evaluator"] == evaluator}
        own = scores[features]
        parts = [
            _phrase(_CALLED[c.against], c.difference)
            for c in self.comparisons
            if c.features == features and c.evaluator == evaluator
        ]
        said = " and ".join(parts)
        return f"On the {evaluator} the {features} is right for {100 * own:.1f}% of the test images: {said}."

    def summary(self, features: str = TARGET) -> str:
        """The sentences of all evaluators that compare image by image, one after the other."""
        names = dict.fromkeys(c.evaluator for c in self.comparisons if c.features == features)
        return " ".join(self.sentence(name, features) for name in names)

    def record(self) -> dict[str, Any]:
        """The entries of ``evaluation.json`` that come from here: rows, differences, spectrum and summary."""
        differences = [
            {"features": c.features, "against": c.against, "evaluator": c.evaluator, **asdict(c.difference)}
            for c in self.comparisons
        ]
        subjects = dict.fromkeys(c.features for c in self.comparisons)
        summary = " ".join(self.summary(name) for name in subjects)
        return {"rows": self.rows, "differences": differences, "spectrum": self.spectrum, "summary": summary}


def _phrase(baseline: str, difference: Difference) -> str:
    points, low, high = (100 * share for share in (difference.value, difference.low, difference.high))
    if difference.verdict == "above":
        return f"{points:.1f} points above {baseline} (95% interval {low:.1f} to {high:.1f})"
    if difference.verdict == "below":
        return f"{-points:.1f} points below {baseline} (95% interval {-high:.1f} to {-low:.1f})"
    return f"no clear difference from {baseline} ({points:+.1f} points, 95% interval {low:+.1f} to {high:+.1f})"


def _measures(scores: Mapping[str, float]) -> list[str]:
    """The names in a result that are measures: those that bring an interval."""
    return [name for name in scores if f"{name}_low" in scores and f"{name}_high" in scores]


def _rows(features: Features, evaluator: str, scores: Mapping[str, float]) -> list[dict[str, Any]]:
    measures = _measures(scores)
    bounds = {f"{name}_{side}" for name in measures for side in ("low", "high")}
    settings = {key: value for key, value in scores.items() if key not in measures and key not in bounds}
    return [
        {
            "features": features.name,
            "evaluator": evaluator,
            "metric": name,
            "value": scores[name],
            "low": scores[f"{name}_low"],
            "high": scores[f"{name}_high"],
            "dimensions": features.dimensions,
            "settings": settings,
        }
        for name in measures
    ]


def _check(features: Mapping[str, tuple[Features, Features]]) -> None:
    missing = [name for name in BASELINES if name not in features]
    if missing or len(features) == len(BASELINES):
        raise ValueError(f"an evaluation needs an encoder and both of {BASELINES}, got {tuple(features)}")
    train, test = next(iter(features.values()))
    for name, (own_train, own_test) in features.items():
        check_parts(own_train, own_test)
        same = np.array_equal(own_train.labels, train.labels) and np.array_equal(own_test.labels, test.labels)
        if not same:
            raise ValueError(f"features of {name!r} are of other images than the rest: the labels differ")


def evaluate(
    features: Mapping[str, tuple[Features, Features]], evaluators: Sequence[Evaluator] = (KNN(), LinearProbe())
) -> Evaluation:
    """Run every evaluator on every (train, test) pair of ``features``, whose keys name the rows of the table.

    The keys hold "random encoder", "raw pixels" and the encoder judged ("target encoder"), all of the same images in
    the same order. Raises InputError for parts that cannot be judged (see :func:`check_parts`).
    """
    _check(features)
    rows: list[dict[str, Any]] = []
    correct: dict[tuple[str, str], Bool[np.ndarray, "n"]] = {}
    for evaluator in evaluators:
        for name, (train, test) in features.items():
            train, test = _named(train, name), _named(test, name)
            if isinstance(evaluator, Classifier):
                outcome = evaluator.classify(train, test)
                correct[name, evaluator.name] = outcome.correct
                rows += _rows(train, evaluator.name, outcome.scores())
            else:
                rows += _rows(train, evaluator.name, evaluator(train, test))
    comparisons = tuple(
        Comparison(
            features=name,
            against=baseline,
            evaluator=evaluator,
            difference=paired_difference(right, correct[baseline, evaluator]),
        )
        for (name, evaluator), right in correct.items()
        if name not in BASELINES
        for baseline in BASELINES
    )
    spectrum = {name: {"rankme": _rankme(train)} for name, (train, _) in features.items() if name != PIXELS}
    return Evaluation(rows=rows, comparisons=comparisons, spectrum=spectrum)


def _named(features: Features, name: str) -> Features:
    return features if features.name == name else Features(features.values, features.labels, name)


def _rankme(train: Features) -> float:
    chosen = np.sort(draws.permutation(len(train), "rankme images")[:RANKME_IMAGES])
    return rankme(torch.from_numpy(train.values[chosen]))

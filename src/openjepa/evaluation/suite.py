"""The comparison: every evaluator on the encoder, on a random one of its shape and on raw pixels, and what it says."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from openjepa import draws
from openjepa.evaluation.answers import packed
from openjepa.evaluation.features import Classifier, Evaluator, Features, Grader, Part
from openjepa.evaluation.intervals import Difference, graded_difference, paired_difference
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.spectrum import RANKME_IMAGES, rankme
from openjepa.evaluation.split import check_parts

TARGET, RANDOM, PIXELS = "trained encoder", "random encoder", "raw pixels"
BASELINES = (RANDOM, PIXELS)
# What an evaluator can read of an image: the average over tokens of the last layer; of the last four blocks, each
# through the final norm, concatenated; every token of the last layer.
LAST, LAST_FOUR, TOKENS = "last layer", "last four blocks", "tokens"
# The task of every row that comes from here: the classes of whole images.
TASK = "classes"
# The two whose sentences stand for all where many were run.
HEADLINE = ("k-NN", "linear probe")
_CALLED = {RANDOM: "a random encoder", PIXELS: "raw pixels"}

Views = Mapping[str, tuple[Part, Part]]
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An evaluator of the suite, what it reads, the short name that chooses it, and its usual share of the time."""

    key: str
    evaluator: Evaluator
    view: str = LAST
    cost: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measured difference: ``features`` against a baseline on one evaluator, image by image."""

    features: str
    against: str
    evaluator: str
    difference: Difference
    metric: str = "accuracy"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the evaluators found; ``rows`` and ``spectrum`` are the entries of ``evaluation.json``."""

    rows: list[dict[str, Any]]
    comparisons: tuple[Comparison, ...]
    spectrum: dict[str, dict[str, float]]

    def sentence(self, evaluator: str, features: str = TARGET) -> str:
        """What one evaluator's accuracy says of ``features`` beside the baselines (KeyError if it did not run)."""
        scores = {
            row["features"]: row["value"]
            for row in self.rows
            if row["evaluator"] == evaluator and row.get("metric", "accuracy") == "accuracy"
        }
        own = scores[features]
        said = " and ".join(_phrase(_CALLED[c.against], c.difference) for c in self._of(features, evaluator))
        beside = f": {said}" if said else ", and no baseline stands beside it"
        where = f"By {evaluator}" if evaluator.startswith("k-NN") else f"On the {evaluator}"
        return f"{where} the {features} is right for {100 * own:.1f}% of the test images{beside}."

    def summary(self, features: str = TARGET) -> str:
        """The sentences of the evaluators that compare accuracies; of more than two, of k-NN and the linear probe, or
        else of the first two."""
        names = list(dict.fromkeys(c.evaluator for c in self._of(features)))
        if len(names) > 2:
            names = [name for name in names if name in HEADLINE] or names[:2]
        return " ".join(self.sentence(name, features) for name in names)

    def _of(self, features: str, evaluator: str | None = None) -> list[Comparison]:
        return [
            c
            for c in self.comparisons
            if c.features == features and c.metric == "accuracy" and evaluator in (None, c.evaluator)
        ]

    def record(self) -> dict[str, Any]:
        """The entries of ``evaluation.json`` that come from here: rows, differences, spectrum and summary."""
        differences = [
            {
                "task": TASK,
                "features": c.features,
                "against": c.against,
                "evaluator": c.evaluator,
                "metric": c.metric,
                **asdict(c.difference),
            }
            for c in self.comparisons
        ]
        subjects = dict.fromkeys(c.features for c in self.comparisons)
        summary = " ".join(filter(None, (self.summary(name) for name in subjects)))
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


@dataclass(frozen=True, kw_only=True)
class Found:
    """One evaluator's result on one kind of features, with its answers or grades image by image where it has them, and
    what an image is worth in an interval (:mod:`openjepa.evaluation.intervals`)."""

    scores: dict[str, float]
    correct: dict[str, Bool[np.ndarray, "n *_K"]]
    grades: dict[str, Float[np.ndarray, "_R n"]]
    dimensions: int
    worth: int | float = 1

    @property
    def settings(self) -> dict[str, float]:
        """What of the scores is no measure and no end of an interval."""
        measures = _measures(self.scores)
        known = {*measures, *(f"{name}_{side}" for name in measures for side in ("low", "high"))}
        return {key: value for key, value in self.scores.items() if key not in known}

    def rows(self, features: str, evaluator: str) -> list[dict[str, Any]]:
        """The entries of ``evaluation.json``, those of an encoder judged with its answers image by image."""
        settings, kept = self.settings, {} if features in BASELINES else self.correct
        return [
            {
                "task": TASK,
                "features": features,
                "evaluator": evaluator,
                "metric": name,
                "value": self.scores[name],
                "low": self.scores[f"{name}_low"],
                "high": self.scores[f"{name}_high"],
                "dimensions": self.dimensions,
                "settings": settings,
            }
            | ({"answers": packed(kept[name], self.worth)} if name in kept else {})
            for name in _measures(self.scores)
        ]

    def differences(self, other: "Found") -> dict[str, Difference]:
        found = {n: paired_difference(right, other.correct[n], self.worth) for n, right in self.correct.items()}
        return found | {n: graded_difference(own, other.grades[n], self.worth) for n, own in self.grades.items()}


def judge(evaluator: Evaluator, train: Part, test: Part) -> Found:
    """Run one evaluator on the features of one subject."""
    correct, grades = {}, {}
    if isinstance(evaluator, Classifier):
        outcome = evaluator.classify(train, test)
        scores, correct = outcome.scores(), {"accuracy": outcome.correct, **outcome.also}
    elif isinstance(evaluator, Grader):
        graded = evaluator.grade(train, test)
        scores, grades = graded.scores(), graded.measures
    else:
        scores = evaluator(train, test)
    return Found(scores=scores, correct=correct, grades=grades, dimensions=train.dimensions)


Judge = Callable[[Evaluator, Part, Part], Found]


def check_same_images(features: Mapping[str, tuple[Part, Part]]) -> None:
    """Refuse parts that cannot be judged (InputError), or that are of different images (ValueError)."""
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

    The keys hold "random encoder", "raw pixels" and the encoder judged ("trained encoder"), all of the same images in
    the same order. Raises InputError for parts that cannot be judged (see :func:`check_parts`).
    """
    missing = [name for name in BASELINES if name not in features]
    if missing or len(features) == len(BASELINES):
        raise ValueError(f"an evaluation needs an encoder and both of {BASELINES}, got {tuple(features)}")
    entries = [Entry(key=evaluator.name, evaluator=evaluator) for evaluator in evaluators]
    return run_suite({name: {LAST: parts} for name, parts in features.items()}, entries)


def run_suite(
    subjects: Mapping[str, Views],
    entries: Sequence[Entry],
    progress: Progress = lambda doing, done, total: None,
    judged: Judge = judge,
) -> Evaluation:
    """Run every entry on every subject that has what it reads; a subject without it is left out of those rows.

    Raw pixels have no blocks: where an entry reads the last four, the same evaluator on the pixels themselves stands
    beside it (run once, if another entry has its settings), and alone they are left out. ``subjects`` gives for each
    name, baselines included, a (train, test) pair for every view; all views of one kind are of the same images.
    ``progress`` is told what begins, the cost done and the cost of all; ``judged`` runs one evaluator on one subject.
    Raises InputError for parts that cannot be judged, and ValueError for two evaluators of one name.
    """
    for name, times in Counter(entry.evaluator.name for entry in entries).items():
        if times > 1:
            raise ValueError(f"{times} evaluators are called {name!r}: give each a name of its own (name=...)")
    for view in (LAST, LAST_FOUR, TOKENS):
        if same := {name: views[view] for name, views in subjects.items() if view in views}:
            check_same_images(same)
    rows: list[dict[str, Any]] = []
    found: dict[tuple[str, str], Found] = {}
    known: dict[Any, Found] = {}
    work = [
        (entry, name, view)
        for entry in entries
        if _readable(entry, subjects)
        for name, views in subjects.items()
        if (view := _view(entry, name, views))
    ]
    total, done = sum(entry.cost for entry, _, _ in work), 0.0
    for entry, name, view in work:
        evaluator = entry.evaluator
        progress(f"{evaluator.name}: {name}", done, total)
        same = name, view, _settings(evaluator)
        if same not in known:
            train, test = (_named(part, name) for part in subjects[name][view])
            known[same] = judged(evaluator, train, test)
        found[evaluator.name, name] = known[same]
        rows += found[evaluator.name, name].rows(name, evaluator.name)
        done += entry.cost
    progress("done", total, total)
    return Evaluation(rows=rows, comparisons=_compare(found), spectrum=_spectrum(subjects))


def _view(entry: Entry, name: str, views: Views) -> str:
    """What the entry reads of this subject; "" for nothing."""
    wanted = LAST if name == PIXELS and entry.view == LAST_FOUR else entry.view
    return wanted if wanted in views else ""


def _readable(entry: Entry, subjects: Mapping[str, Views]) -> bool:
    """Whether anything but raw pixels has what the entry reads: alone, the pixels would be beside nothing."""
    return any(entry.view in views for name, views in subjects.items() if name != PIXELS)


def _settings(evaluator: Evaluator) -> Any:
    """All of an evaluator but its name; equal settings find the same."""
    if not is_dataclass(evaluator):
        return id(evaluator)
    own = [(field.name, getattr(evaluator, field.name)) for field in fields(evaluator) if field.name != "name"]
    return type(evaluator), repr(own)


def _compare(found: Mapping[tuple[str, str], Found]) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(features=name, against=baseline, evaluator=evaluator, difference=difference, metric=metric)
        for (evaluator, name), own in found.items()
        if name not in BASELINES
        for baseline in BASELINES
        if (evaluator, baseline) in found
        for metric, difference in own.differences(found[evaluator, baseline]).items()
    )


def _named(part: Part, name: str) -> Part:
    return part if part.name == name else type(part)(part.values, part.labels, name)


def _spectrum(subjects: Mapping[str, Views]) -> dict[str, dict[str, float]]:
    spectrum = {}
    for name, views in subjects.items():
        if name != PIXELS and LAST in views:
            train = views[LAST][0]
            chosen = np.sort(draws.permutation(len(train), "rankme images")[:RANKME_IMAGES])
            spectrum[name] = {"rankme": rankme(torch.from_numpy(train.values[chosen])), "images": len(chosen)}
    return spectrum

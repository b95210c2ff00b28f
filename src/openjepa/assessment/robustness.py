"""How much of an accuracy is left when the test images are noisy or blurred, and only they: nothing is learned anew."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from openjepa import draws
from openjepa.assessment.encoders import Panel, reading
from openjepa.assessment.extraction import BAD_IMAGES, Chosen, batches
from openjepa.assessment.labelled import chosen_parts, left_to_judge, of_classes
from openjepa.data.augmentation import Preprocessing, to_unit
from openjepa.data.base import Splits
from openjepa.data.loader import BadRecord
from openjepa.evaluation.features import Classifier, Features, extract
from openjepa.evaluation.intervals import paired_difference, wilson
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.suite import BASELINES, LAST


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to spoil an image: ``noise`` (Gaussian, ``amount`` of the full range from black to white as its standard
    deviation) or ``blur`` (Gaussian, ``amount`` of the image's short side as its standard deviation).
    """

    kind: str
    amount: float

    @property
    def name(self) -> str:
        """As it stands in a table."""
        return f"{self.kind} {100 * self.amount:g}%"

    def __call__(self, images: Float[Tensor, "B C H W"], first: int) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1], spoilt; ``first`` is the number of the first one, from which its noise derives."""
        if self.kind == "noise":
            keys = np.arange(first, first + len(images))[:, None], np.arange(images[0].numel())
            radius = np.sqrt(-2 * np.log1p(-draws.uniform("corruption radius", *keys)))
            noise = radius * np.cos(2 * math.pi * draws.uniform("corruption angle", *keys))
            return (images + self.amount * torch.from_numpy(noise).float().view_as(images)).clamp(0, 1)
        from torchvision.transforms.v2.functional import gaussian_blur

        sigma = self.amount * min(images.shape[-2:])
        return gaussian_blur(images, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)


CORRUPTIONS = tuple(
    Corruption(kind=kind, amount=amount) for kind, amounts in (("noise", (0.1, 0.2)), ("blur", (0.04, 0.08)))
    for amount in amounts
)  # fmt: skip


def corrupted(
    batches: Iterator[tuple[Shaped[Tensor, "B C H W"], Tensor]], corruption: Corruption
) -> Iterator[tuple[Float[Tensor, "B C H W"], Tensor]]:
    """The (images, labels) with every image spoilt."""
    first = 0
    for images, labels in batches:
        yield corruption(to_unit(images), first), labels
        first += len(images)


def assess_robustness(
    panel: Panel,
    splits: Splits,
    *,
    limit: int = 20_000,
    bad_images: float = BAD_IMAGES,
    trained_on: str = "",
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """k-NN and linear probe, fitted to clean images, on each spoilt test part: entries of ``evaluation.json``.

    Args:
        splits, limit, bad_images, trained_on: as for :func:`openjepa.assessment.labelled.assess`, so the same images.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: too many images cannot be read, or too few are left.
    """
    begin = time.perf_counter()
    (learn, held), sentence = chosen_parts(splits, limit, trained_on=trained_on)
    read = reading(panel, (LAST,))

    def features(images: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Features]:
        return {kind.subject: found for kind, found in extract(read, images).items()}

    note("features of spoilt images")
    bad: list[BadRecord] = []
    train = features(_images(panel.preprocessing, learn, bad))
    tests = {"clean": features(_images(panel.preprocessing, held, bad))}
    own = panel.subjects[0]
    labels = train[own].labels, tests["clean"][own].labels
    classes, notes = left_to_judge((learn, held), labels, bad, bad_images)
    for corruption in corruptions:
        tests[corruption.name] = features(corrupted(_images(panel.preprocessing, held, []), corruption))
    train = {name: of_classes(found, classes) for name, found in train.items()}
    tests = {part: {name: of_classes(one, classes) for name, one in found.items()} for part, found in tests.items()}
    rows, differences = [], []
    for evaluator in (KNN(device=panel.device), LinearProbe(device=panel.device)):
        note(f"{evaluator.name} on spoilt images")
        right = {
            name: correct_by_part(evaluator, train[name], {part: found[name] for part, found in tests.items()})
            for name in train
        }
        for part in tests:
            rows += [
                _row(part, name, evaluator.name, parts[part], train[name].dimensions) for name, parts in right.items()
            ]
        differences += [
            {
                "task": _task(part),
                "features": own,
                "against": against,
                "evaluator": evaluator.name,
                "metric": "accuracy",
            }
            | asdict(paired_difference(correct, right[against][part]))
            for against in BASELINES
            if against in right
            for part, correct in right[own].items()
        ]
    return {
        "data": splits.train.name,
        "classes": len(np.unique(tests["clean"][own].labels)),
        "train_images": len(train[own]),
        "test_images": len(tests["clean"][own]),
        "split": sentence,
        "notes": notes,
        "rows": rows,
        "differences": differences,
        "summary": _summary(rows, own),
        "seconds": time.perf_counter() - begin,
    }


def _images(preprocessing: Preprocessing, part: Chosen, bad: list[BadRecord]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels; ``bad`` takes what cannot be read."""
    for batch in batches(part, preprocessing):
        bad += batch.bad
        if len(batch.samples):
            yield batch.images, batch.labels


def correct_by_part(
    evaluator: Classifier, train: Features, tests: Mapping[str, Features]
) -> dict[str, Bool[np.ndarray, "n"]]:
    """Which images of each test part a classifier names rightly, fitted once: one image's answer is its own."""
    every = Features(
        np.concatenate([part.values for part in tests.values()]),
        np.concatenate([part.labels for part in tests.values()]),
        train.name,
    )
    correct = evaluator.classify(train, every).correct
    ends = np.cumsum([len(part) for part in tests.values()])[:-1]
    return dict(zip(tests, np.split(correct, ends), strict=True))


def _task(part: str) -> str:
    return f"robustness: {part}"


def _row(part: str, name: str, evaluator: str, correct: np.ndarray, dimensions: int) -> dict[str, Any]:
    low, high = wilson(int(correct.sum()), len(correct))
    return {
        "task": _task(part),
        "features": name,
        "evaluator": evaluator,
        "metric": "accuracy",
        "value": float(correct.mean()),
        "low": low,
        "high": high,
        "dimensions": dimensions,
        "settings": {},
    }


def _summary(rows: Sequence[dict[str, Any]], subject: str) -> str:
    own = [row for row in rows if row["features"] == subject]
    clean = {row["evaluator"]: row["value"] for row in own if row["task"] == _task("clean")}
    worst = min(own, key=lambda row: row["value"] - clean[row["evaluator"]])
    lost = 100 * (clean[worst["evaluator"]] - worst["value"])
    return (
        f"Of images spoilt by noise or blur the {subject} loses most with {worst['task'].partition(': ')[2]}: "
        f"{lost:.1f} points on the {worst['evaluator']}."
    )

"""How much of an accuracy is left when the test images are noisy or blurred, and only they: nothing is learned anew."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from openjepa import draws
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Panel
from openjepa.assessment.extraction import BAD_IMAGES, Altered, Extracted, Images, extract_kinds
from openjepa.assessment.outcomes import remembering
from openjepa.assessment.parts import chosen_parts, counted, left_to_judge, of_classes
from openjepa.data.augmentation import Preprocessing, to_unit
from openjepa.data.base import Source, Splits
from openjepa.data.loader import Batch
from openjepa.data.survey import levels, survey
from openjepa.evaluation.answers import packed
from openjepa.evaluation.features import Classifier, Features, Part
from openjepa.evaluation.folds import WORTH, in_folds
from openjepa.evaluation.intervals import Difference, equal_grades, paired_difference
from openjepa.evaluation.knn import KNN
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.suite import BASELINES, LAST, Judge, judge


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to spoil an image: ``noise`` (Gaussian, ``amount`` of the range from black to ``white`` as its standard
    deviation) or ``blur`` (Gaussian, ``amount`` of the image's short side as its standard deviation).
    """

    kind: str
    amount: float

    @property
    def name(self) -> str:
        """As it stands in a table."""
        return f"{self.kind} {100 * self.amount:g}%"

    def __call__(
        self, images: Float[Tensor, "B C H W"], numbers: Int64[np.ndarray, "B"], white: float = 1.0
    ) -> Float[Tensor, "B C H W"]:
        """Images from 0 to 1, or to their own highest value where that is more, spoilt; each one's noise derives from
        its number."""
        if self.kind == "noise":
            keys = numbers[:, None], np.arange(images[0].numel())
            radius = np.sqrt(-2 * np.log1p(-draws.uniform("corruption radius", *keys)))
            noise = radius * np.cos(2 * math.pi * draws.uniform("corruption angle", *keys))
            noisy = images + self.amount * white * torch.from_numpy(noise).float().view_as(images)
            return noisy.clamp(min=0).minimum(images.amax((1, 2, 3), keepdim=True).clamp(min=1))
        from torchvision.transforms.v2.functional import gaussian_blur

        sigma = self.amount * min(images.shape[-2:])
        return gaussian_blur(images, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma] * 2)


CORRUPTIONS = tuple(
    Corruption(kind=kind, amount=amount) for kind, amounts in (("noise", (0.1, 0.2)), ("blur", (0.04, 0.08)))
    for amount in amounts
)  # fmt: skip


def white_of(source: Source, preprocessing: Preprocessing) -> float:
    """Where images end in practice, in units of their files' white: 12 bits in a 16-bit file come nowhere near it.

    1 for images of 8 bits; for others four standard deviations above the mean of the brightest channel, 1 at most.
    """
    if survey(source).bits == 8:
        return 1.0
    found = levels(source, preprocessing.size, preprocessing.channels)
    return min(1.0, max(mean + 4 * std for mean, std in zip(found.mean, found.std, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Spoilt(Altered):
    """Images of which every one is spoilt by its place among them; ``white`` as :func:`white_of` has it."""

    corruption: Corruption
    white: float = 1.0

    @classmethod
    def by(cls, corruption: Corruption, clean: Images, white: float = 1.0) -> "Spoilt":
        """All of the images, spoilt."""
        name = f"{clean.name}, {corruption.name}"
        return cls(indices=clean.indices, name=name, clean=clean, corruption=corruption, white=white)

    @property
    def content(self) -> Any:
        of_white = [] if self.white == 1 else [self.white]
        return [self.clean.content, asdict(self.corruption), *of_white]

    def batches(self, indices: Int64[np.ndarray, "m"], preprocessing: Preprocessing) -> Iterator[Batch]:
        for batch in self.clean.batches(indices, preprocessing):
            if len(batch.samples):
                places = np.searchsorted(self.indices, batch.samples.numpy())
                yield replace(batch, images=self.corruption(to_unit(batch.images), places, self.white))
            else:
                yield batch

    def labels(self, samples: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m"]:
        return self.clean.labels(samples)

    def reference(self, sample: int) -> str:
        return self.clean.reference(sample)


def assess_robustness(
    panel: Panel,
    splits: Splits,
    *,
    limit: int = 20_000,
    bad_images: float = BAD_IMAGES,
    trained_on: str = "",
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    cache: FeatureCache | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """k-NN and linear probe, fitted to clean images, on each spoilt test part: entries of ``evaluation.json``.

    Args:
        splits, limit, bad_images, trained_on: as for :func:`openjepa.assessment.labelled.assess`, so the same images.
        cache: where features, and what evaluators found in them, are looked for and kept; none are without it.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: too many images cannot be read, or too few are left.
    """
    begin = time.perf_counter()
    chosen = chosen_parts(splits, limit, folded=True, trained_on=trained_on)
    kinds = [kind for kind in panel.kinds if kind.view == LAST]

    def taken(images: Images) -> Extracted:
        return extract_kinds(panel, images, kinds, cache)

    note("features of spoilt images")
    unspoilt = [taken(part) for part in chosen.each]
    learned, clean = unspoilt[0], unspoilt[-1]
    own = panel.subjects[0]
    labels = _by_subject(learned)[own].labels, _by_subject(clean)[own].labels
    classes, notes = left_to_judge(chosen, labels, [one for part in unspoilt for one in part.bad], bad_images)
    white = white_of(chosen.held.source, panel.preprocessing)
    parts = {"clean": clean} | {one.name: taken(Spoilt.by(one, chosen.held, white)) for one in corruptions}
    train = _by_subject(learned, classes)
    tests = {part: _by_subject(found, classes) for part, found in parts.items()}
    rows, differences, lost = [], [], {}
    judged, worth, evaluators = remembering(cache), 1.0, (KNN(device=panel.device), LinearProbe(device=panel.device))
    asked = len(evaluators) * len(corruptions)
    if chosen.folded:
        judged, worth = in_folds(judged), WORTH
    for evaluator in evaluators:
        note(f"{evaluator.name} on spoilt images")
        right = {
            name: correct_by_part(evaluator, train[name], {part: found[name] for part, found in tests.items()}, judged)
            for name in train
        }
        for part in tests:
            rows += [
                _row(part, name, evaluator.name, parts[part], train[name].dimensions, worth)
                for name, parts in right.items()
            ]
        for corruption in corruptions:
            before, after = right[own]["clean"], right[own][corruption.name]
            lost[corruption.name, evaluator.name] = paired_difference(before, after, worth, among=asked)
        differences += [
            {
                "task": _task(part),
                "features": own,
                "against": against,
                "evaluator": evaluator.name,
                "metric": "accuracy",
            }
            | asdict(paired_difference(correct, right[against][part], worth))
            for against in BASELINES
            if against in right
            for part, correct in right[own].items()
        ]
    return {
        "data": splits.train.name,
        "classes": len(np.unique(train[own].labels)),
        **counted(len(train[own]), len(tests["clean"][own]), folded=chosen.folded),
        "split": chosen.sentence,
        "notes": notes,
        "rows": rows,
        "differences": differences,
        "summary": _summary(lost, own),
        "seconds": time.perf_counter() - begin,
    }


def _by_subject(found: Extracted, classes: Int64[np.ndarray, "K"] | None = None) -> dict[str, Part]:
    """The features of every subject, of all classes or of some."""
    parts = {kind.subject: part for kind, part in found.parts.items()}
    return parts if classes is None else {name: of_classes(part, classes) for name, part in parts.items()}


def correct_by_part(
    evaluator: Classifier, train: Part, tests: Mapping[str, Part], judged: Judge = judge
) -> dict[str, Bool[np.ndarray, "_n"]]:
    """Which images of each test part a classifier names rightly, fitted once: one image's answer is its own."""
    every = Features(
        np.concatenate([part.values for part in tests.values()]),
        np.concatenate([part.labels for part in tests.values()]),
        train.name,
    )
    correct = judged(evaluator, train, every).correct["accuracy"]
    ends = np.cumsum([len(part) for part in tests.values()])[:-1]
    return dict(zip(tests, np.split(correct, ends), strict=True))


def _task(part: str) -> str:
    return f"robustness: {part}"


def _row(part: str, name: str, evaluator: str, correct: np.ndarray, dimensions: int, worth: float) -> dict[str, Any]:
    low, high = equal_grades(float(correct.mean()), worth * len(correct))
    answers = {} if name in BASELINES else {"answers": packed(correct, worth)}
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
    } | answers


def _summary(lost: Mapping[tuple[str, str], Difference], subject: str) -> str:
    """What the worst corruption costs, of losses of accuracy by (corruption, evaluator).

    Their intervals are to hold all at once (``among`` of :func:`paired_difference`): the largest of several losses is
    too large by luck more often than each."""
    (corruption, evaluator), worst = max(lost.items(), key=lambda pair: pair[1].value)
    if worst.value <= 0:
        return f"On images spoilt by noise or blur the {subject} loses nothing."
    value, low, high = (100 * number for number in (worst.value, worst.low, worst.high))
    return (
        f"Of images spoilt by noise or blur the {subject} loses most with {corruption}: {value:.1f} points on the "
        f"{evaluator} (95% interval {low:.1f} to {high:.1f}, of all {len(lost)} losses at once)."
    )

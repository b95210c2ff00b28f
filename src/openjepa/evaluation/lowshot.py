"""Low-shot classification: how far do a handful of labels get with frozen features?"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64

from openjepa import draws
from openjepa.evaluation import logistic
from openjepa.evaluation.features import Features, Grades
from openjepa.evaluation.split import by_class, check_pair

# Where one image a class leaves nothing to choose by: scikit-learn's own default.
_UNCHOSEN = 1.0
# So many times the labels of a share still go by its name.
_NEARLY = 1.5


@dataclass(frozen=True, kw_only=True)
class LowShot:
    """Logistic regression on few labelled images of the train part, averaged over several draws of them.

    ``shares`` are shares of each class (at least one image; 1% is I-JEPA's, Assran et al. 2023, sec. 4), and left out
    where one image of each class is already half as many again; ``shots`` are images a class (all of a class that has
    fewer). C is chosen by cross-validation among the drawn images alone, since a person with so few labels has no
    others; with one image in a class it is 1. The interval is over draws and test images together.
    """

    shots: tuple[int, ...] = (1, 2, 5, 10)
    shares: tuple[float, ...] = (0.01,)
    repeats: int = 5
    folds: int = 3
    strengths: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    seed: int = 0
    device: str = "cpu"
    name: str = "low-shot"

    def __post_init__(self) -> None:
        if min(self.shots, default=1) < 1 or not all(0 < share <= 1 for share in self.shares) or self.repeats < 2:
            raise ValueError(
                f"low-shot needs shots >= 1, shares in (0, 1] and repeats >= 2, got {self.shots}, {self.shares} and "
                f"{self.repeats}"
            )

    def grade(self, train: Features, test: Features) -> Grades:
        """For each number of labels: whether each test image is right under each draw."""
        check_pair(train, test)
        measures: dict[str, np.ndarray] = {}
        settings = {"draws": float(self.repeats)}
        counts = np.unique(train.labels, return_counts=True)[1]
        wanted: dict[str, np.ndarray] = {}
        for share in self.shares:
            per_class = np.maximum(1, np.round(share * counts))
            if per_class.sum() <= _NEARLY * share * counts.sum():
                wanted[f"{100 * share:g}% of labels"] = per_class
        wanted |= {f"{shots} per class": np.minimum(shots, counts) for shots in self.shots}
        for name, per_class in wanted.items():
            measures[f"accuracy, {name}"] = self._right(train, test, per_class.astype(np.int64)).astype(np.float64)
            settings[f"images, {name}"] = float(per_class.sum())
        return Grades(measures=measures, settings=settings)

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """The accuracy for each number of labels, with its interval over draws and test images."""
        return self.grade(train, test).scores()

    def chosen(self, labels: Int64[np.ndarray, "n"], per_class: Int64[np.ndarray, "K"], repeat: int) -> np.ndarray:
        """The images of one draw, class by class: a function of labels and seed, so the same for every encoder."""
        parts = []
        for (label, members), count in zip(by_class(labels), per_class, strict=True):
            order = draws.permutation(len(members), "low-shot", self.seed, repeat, label)
            parts.append(members[order[:count]])
        return np.concatenate(parts)

    def _right(self, train: Features, test: Features, per_class: Int64[np.ndarray, "K"]) -> Bool[np.ndarray, "R n"]:
        """Which test images are right under each draw; draws of few images are solved side by side."""
        classes, images = np.unique(train.labels), int(per_class.sum())
        labels = torch.from_numpy(np.repeat(np.arange(len(classes)), per_class)).to(self.device)  # of every draw
        asked = torch.from_numpy(test.values).to(self.device)
        width = min(images, train.dimensions)
        at_once = logistic.sets_at_once(images, width, len(classes), len(self.strengths))
        answers: list[torch.Tensor] = []
        for first in range(0, self.repeats, at_once):
            some = range(first, min(first + at_once, self.repeats))
            drawn = [self.chosen(train.labels, per_class, repeat) for repeat in some]
            values = [torch.from_numpy(train.values[one]).to(self.device) for one in drawn]
            features = [logistic.standardise(one) for one in values]
            strengths = [[strength] for strength in self._choose(features, values, labels, per_class)]
            fits = logistic.fit_each(features, labels, len(classes), strengths, tolerance=1e-4)
            answers += [logistic.predict(fitted, own, asked)[0] for fitted, own in zip(fits, features, strict=True)]
        return classes[torch.stack(answers).cpu().numpy()] == test.labels

    def _choose(
        self,
        features: list[logistic.Standardised],
        values: list[torch.Tensor],
        labels: torch.Tensor,
        per_class: Int64[np.ndarray, "K"],
    ) -> list[float]:
        """Of each draw the C with the most right answers over folds of its images (the smallest among equals)."""
        folds = min(self.folds, int(per_class.min()))
        if folds < 2:
            return [_UNCHOSEN] * len(features)
        # The images come class by class in random order: their place in the class deals them out fairly.
        fold = torch.from_numpy(np.concatenate([np.arange(count) % folds for count in per_class])).to(labels.device)
        right = torch.zeros(len(features), len(self.strengths), device=labels.device)
        strengths = sorted(self.strengths)
        for number in range(folds):
            kept, held = (fold != number).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
            learned = [own.rows(kept) for own in features]
            fits = logistic.fit_each(
                learned, labels[kept], len(per_class), [strengths] * len(learned), tolerance=1e-3, limit=100
            )
            for draw, fitted in enumerate(fits):
                answers = logistic.predict(fitted, features[draw], values[draw][held])
                right[draw] += (answers == labels[held]).sum(1)
        return [strengths[best] for best in right.argmax(1).tolist()]

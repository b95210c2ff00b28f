"""Low-shot classification: how far do a handful of labels get with frozen features?"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from openjepa import draws
from openjepa.evaluation import logistic
from openjepa.evaluation.features import Features, Grades

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
            right = [self._draw(train, test, per_class.astype(np.int64), repeat) for repeat in range(self.repeats)]
            measures[f"accuracy, {name}"] = np.stack(right).astype(np.float64)
            settings[f"images, {name}"] = float(per_class.sum())
        return Grades(measures=measures, settings=settings)

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """The accuracy for each number of labels, with its interval over draws and test images."""
        return self.grade(train, test).scores()

    def chosen(self, labels: Int64[np.ndarray, "n"], per_class: Int64[np.ndarray, "K"], repeat: int) -> np.ndarray:
        """The images of one draw, class by class: a function of labels and seed, so the same for every encoder."""
        parts = []
        for label, count in zip(np.unique(labels), per_class, strict=True):
            members = np.flatnonzero(labels == label)
            order = draws.permutation(len(members), "low-shot", self.seed, repeat, int(label))
            parts.append(members[order[:count]])
        return np.concatenate(parts)

    def _draw(self, train: Features, test: Features, per_class: Int64[np.ndarray, "K"], repeat: int) -> np.ndarray:
        drawn = train.take(self.chosen(train.labels, per_class, repeat))
        classes, codes = np.unique(drawn.labels, return_inverse=True)
        values, labels = torch.from_numpy(drawn.values), torch.from_numpy(codes.astype(np.int64))
        values, labels = values.to(self.device), labels.to(self.device)
        features = logistic.standardise(values)
        strength = self._choose(features, values, labels, per_class)
        fitted = logistic.fit(features, labels, len(classes), [strength], tolerance=1e-4)
        answer = logistic.predict(fitted, features, torch.from_numpy(test.values).to(self.device))[0]
        return classes[answer.cpu().numpy()] == test.labels

    def _choose(
        self,
        features: logistic.Standardised,
        values: torch.Tensor,
        labels: torch.Tensor,
        per_class: Int64[np.ndarray, "K"],
    ) -> float:
        """The C with the most right answers over the folds of the drawn images (the smallest among equals)."""
        folds = min(self.folds, int(per_class.min()))
        if folds < 2:
            return _UNCHOSEN
        # The images come class by class in random order: their place in the class deals them out fairly.
        fold = torch.from_numpy(np.concatenate([np.arange(count) % folds for count in per_class])).to(values.device)
        right = torch.zeros(len(self.strengths), device=values.device)
        strengths = sorted(self.strengths)
        for number in range(folds):
            kept, held = (fold != number).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
            fits = logistic.fit(features.rows(kept), labels[kept], len(per_class), strengths, tolerance=1e-3, limit=100)
            right += (logistic.predict(fits, features, values[held]) == labels[held]).sum(1)
        return strengths[int(right.argmax())]

"""The linear probe: how much of the classes can be read from frozen features by a straight line."""

from dataclasses import dataclass

import numpy as np
import torch

from openjepa.evaluation import logistic
from openjepa.evaluation.features import Features, Outcome
from openjepa.evaluation.split import check_pair, split


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features; ``strengths`` are scikit-learn's C (larger: freer).

    C is the one with the best accuracy on ``holdout`` of each class of the TRAIN part (the smallest among equals); the
    probe is then fitted to the whole train part. The test part is only predicted.
    """

    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    holdout: float = 0.2
    seed: int = 0
    device: str = "cpu"
    name: str = "linear probe"

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"the linear probe needs strengths above 0, got {self.strengths}")

    def classify(self, train: Features, test: Features) -> Outcome:
        """The prediction for each test image, and the C chosen."""
        check_pair(train, test)
        classes, codes = np.unique(train.labels, return_inverse=True)
        labels = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        values = torch.from_numpy(train.values).to(self.device)
        features = logistic.standardise(values)
        strength, start = self._choose(features, values, labels, train, len(classes))
        fitted = logistic.fit(features, labels, len(classes), [strength], start=start)
        answer = logistic.predict(fitted, features, torch.from_numpy(test.values).to(self.device))[0]
        predicted = classes[answer.cpu().numpy()]
        return Outcome(predicted=predicted, correct=predicted == test.labels, settings={"C": strength})

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """``accuracy`` with its interval, and ``C``."""
        return self.classify(train, test).scores()

    def _choose(
        self, features: logistic.Standardised, values: torch.Tensor, labels: torch.Tensor, train: Features, classes: int
    ) -> tuple[float, logistic.LogisticFit | None]:
        """The strength that does best on a part held out of the train part, and its model to start from."""
        strengths = sorted(self.strengths)
        if len(strengths) == 1:
            return strengths[0], None
        kept, held = (torch.from_numpy(part).to(self.device) for part in split(train.labels, self.holdout, self.seed))
        # Tenths of a point rank the strengths; only the last fit is solved to the end.
        fits = logistic.fit(features.rows(kept), labels[kept], classes, strengths, tolerance=1e-4, limit=200)
        answers = logistic.predict(fits, features, values[held])
        best = int((answers == labels[held]).sum(1).argmax())
        return strengths[best], fits.only(best)

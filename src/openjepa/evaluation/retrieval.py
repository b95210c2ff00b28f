"""Image retrieval: does an image's nearest neighbour list begin with images of its class?"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from openjepa.evaluation.features import Features, Grades
from openjepa.evaluation.knn import unit
from openjepa.evaluation.split import check_pair

# Similarities held at one time: 16 MiB in float32, and as much again for their order.
SIMILARITIES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Mean average precision: every test image ranks all train images by cosine similarity.

    Relevant are the train images of its class; average precision is the mean precision at their ranks (Manning et al.
    2008, "Introduction to Information Retrieval", sec. 8.4; no trapezoids). Of equals the earlier image comes first.
    ``precision at 10`` is the share of relevant ones among the first ten (of all, where there are fewer).
    Nothing is trained or chosen.
    """

    device: str = "cpu"
    name: str = "retrieval"
    at_once: int = SIMILARITIES_AT_ONCE

    def grade(self, train: Features, test: Features) -> Grades:
        """Average precision and precision at 10 of each test image."""
        check_pair(train, test)
        bank = unit(torch.from_numpy(train.values).to(self.device))
        labels = torch.from_numpy(train.labels).to(self.device)
        asked = unit(torch.from_numpy(test.values).to(self.device))
        wanted = torch.from_numpy(test.labels).to(self.device)
        average, early = [], []
        for rows in torch.arange(len(asked), device=self.device).split(max(1, self.at_once // len(bank))):
            order = (asked[rows] @ bank.T).argsort(dim=1, descending=True, stable=True)
            relevant = labels[order] == wanted[rows, None]
            average.append(average_precision(relevant))
            early.append(relevant[:, :10].double().mean(1))
        measures = {"mAP": torch.cat(average), "precision at 10": torch.cat(early)}
        return Grades(
            measures={name: grades[None].cpu().numpy().astype(np.float64) for name, grades in measures.items()},
            settings={"gallery": float(len(train))},
        )

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """``mAP`` and ``precision at 10`` with their intervals over test images."""
        return self.grade(train, test).scores()


def average_precision(relevant: Bool[Tensor, "B n"]) -> Float64[Tensor, "B"]:
    """Average precision of ranked lists: the mean precision at the ranks of what is relevant; 0 for none."""
    hits = relevant.cumsum(1, dtype=torch.int32)
    precision = hits / torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    return (precision * relevant).sum(1, dtype=torch.float64) / relevant.sum(1).clamp(min=1)

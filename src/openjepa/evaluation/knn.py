"""k nearest neighbours on frozen features: no training, so it measures the features and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from openjepa.evaluation.features import Features, Outcome
from openjepa.evaluation.split import check_pair, split


def unit(values: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """Vectors of length 1, of any finite ones; zeros stay.

    A power of two, which changes no digit, brings each to where its square is neither too large nor too small.
    """
    _, exponent = torch.frexp(values.abs().amax(-1, keepdim=True))
    return F.normalize(torch.ldexp(values, -exponent), dim=-1)


# Similarities held at one time: 64 MiB in float32, whatever the number of images.
SIMILARITIES_AT_ONCE = 2**24


def _most_similar(similarity: Float32[Tensor, "B n"], k: int) -> tuple[Float32[Tensor, "B k"], Int64[Tensor, "B k"]]:
    """The k largest of each row; where equals compete for the last place the lower index wins (``topk`` picks any)."""
    # One more than asked for shows a tie at the last place, without another look at all the similarities.
    values, index = similarity.topk(min(k + 1, similarity.shape[1]))
    crowded = (values[:, k:] == values[:, k - 1 : k]).any(1)
    values, index = values[:, :k], index[:, :k]
    if crowded.any():
        ordered, order = similarity[crowded].sort(dim=1, descending=True, stable=True)
        values[crowded], index[crowded] = ordered[:, :k], order[:, :k]
    return values, index


def _vote(
    similarity: Float32[Tensor, "B k"],
    votes_for: Int64[Tensor, "B k"],
    classes: int,
    temperature: float,
    ks: Sequence[int],
) -> Int64[Tensor, "G B"]:
    """The class voted for by the first so many neighbours, for each of the rising ``ks``."""
    # One rank at a time: no two additions meet in one cell, so the sum has one order on every device. The nearest has
    # a vote of 1 and no other more, whatever the temperature.
    weight = ((similarity.double() - similarity[:, :1]) / temperature).exp()
    tally = weight.new_zeros(len(weight), classes)
    winners = []
    for rank in range(weight.shape[1]):
        tally.scatter_add_(1, votes_for[:, rank : rank + 1], weight[:, rank : rank + 1])
        if rank + 1 in ks:
            winners.append(tally.argmax(1))
    return torch.stack(winners)


def _classify(
    bank: Float32[Tensor, "n D"],
    labels: Int64[Tensor, "n"],
    queries: Float32[Tensor, "m D"] | None,
    *,
    ks: Sequence[int],
    temperature: float,
    at_once: int,
) -> Int64[Tensor, "G m"]:
    """The class of each query for each k of the rising ``ks``; with no queries, of each image by the others.

    A k beyond the images there are is as good as all of them.
    """
    leave_one_out = queries is None
    bank = unit(bank)
    asked = bank if queries is None else unit(queries)
    capped = [min(k, len(bank) - leave_one_out) for k in ks]
    classes, codes = labels.unique(return_inverse=True)  # in their order; labels may be any numbers
    rows = max(1, at_once // len(bank))
    predicted = []
    for start in range(0, len(asked), rows):
        similarity = asked[start : start + rows] @ bank.T
        if leave_one_out:
            own = torch.arange(len(similarity), device=bank.device)
            similarity[own, own + start] = -torch.inf
        nearest, index = _most_similar(similarity, capped[-1])
        predicted.append(_vote(nearest, codes[index], len(classes), temperature, sorted(set(capped))))
    each = torch.cat(predicted, 1)
    return classes[each[[sorted(set(capped)).index(k) for k in capped]]]


@dataclass(frozen=True, kw_only=True)
class KNN:
    """Weighted k-NN: cosine similarity s, each neighbour votes with exp(s / temperature) (Wu et al. 2018, sec. 3.4).

    The values are DINO's (Caron et al. 2021, sec. 4.1): k 20, temperature 0.07. ``k`` is capped at the number of
    training images. Ties go to the earlier image and to the lower class. ``at_once`` bounds the memory, in numbers.
    """

    k: int = 20
    temperature: float = 0.07
    device: str = "cpu"
    name: str = "k-NN"
    at_once: int = SIMILARITIES_AT_ONCE

    def __post_init__(self) -> None:
        if self.k < 1 or not self.temperature > 0 or self.at_once < 1:
            raise ValueError(f"k-NN needs k >= 1 and temperature > 0, got {self.k} and {self.temperature}")

    def classify(self, train: Features, test: Features) -> Outcome:
        """The prediction for each test image."""
        check_pair(train, test)
        predicted = _classify(
            torch.from_numpy(train.values).to(self.device),
            torch.from_numpy(train.labels).to(self.device),
            torch.from_numpy(test.values).to(self.device),
            ks=[self.k],
            temperature=self.temperature,
            at_once=self.at_once,
        )
        predicted = predicted[0].cpu().numpy()
        settings = {"k": float(min(self.k, len(train)))}
        return Outcome(predicted=predicted, correct=predicted == test.labels, settings=settings)

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """``accuracy`` with its interval, and ``k``."""
        return self.classify(train, test).scores()


@dataclass(frozen=True, kw_only=True)
class KNNGrid:
    """Weighted k-NN as :class:`KNN` with several k (DINO reports 10, 20, 100 and 200), all from one sorting.

    The k of ``accuracy`` is the best on ``holdout`` of each class of the TRAIN part (the smallest among equals); the
    accuracy with every k stands beside it. A k above the number of training images is left out; were all, it is that
    number.
    """

    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    holdout: float = 0.2
    seed: int = 0
    device: str = "cpu"
    name: str = "k-NN, k chosen"
    at_once: int = SIMILARITIES_AT_ONCE

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1 or list(self.ks) != sorted(set(self.ks)) or not self.temperature > 0:
            raise ValueError(f"k-NN needs rising k >= 1 and temperature > 0, got {self.ks} and {self.temperature}")

    def classify(self, train: Features, test: Features) -> Outcome:
        """The prediction for each test image with the k chosen, and which are right with every k."""
        check_pair(train, test)
        ks = [k for k in self.ks if k <= len(train)] or [len(train)]
        kept, held = split(train.labels, self.holdout, self.seed)
        trial = self._predict(train.take(kept), train.take(held), ks) == train.labels[held]
        best = int(trial.sum(1).argmax())
        predicted = self._predict(train, test, ks)
        right = predicted == test.labels
        return Outcome(
            predicted=predicted[best],
            correct=right[best],
            settings={"k": float(ks[best])},
            also={f"accuracy, k={k}": row for k, row in zip(ks, right, strict=True)},
        )

    def __call__(self, train: Features, test: Features) -> dict[str, float]:
        """``accuracy`` with its interval, ``k``, and the accuracy with every k."""
        return self.classify(train, test).scores()

    def _predict(self, train: Features, test: Features, ks: Sequence[int]) -> Int64[np.ndarray, "G m"]:
        predicted = _classify(
            torch.from_numpy(train.values).to(self.device),
            torch.from_numpy(train.labels).to(self.device),
            torch.from_numpy(test.values).to(self.device),
            ks=ks,
            temperature=self.temperature,
            at_once=self.at_once,
        )
        return predicted.cpu().numpy()


def leave_one_out(
    values: Float[Tensor, "n D"], labels: Int[Tensor, "n"], *, k: int = 20, temperature: float = 0.07
) -> float:
    """Share of images whose class the k nearest of the others name, in [0, 1]: the online k-NN of a training run.

    Runs where the tensors are; images without a class (-1) are left out. NaN where a value is not finite, whose
    neighbours nobody knows. Raises ValueError for fewer than two images with a class, and as :class:`KNN` does.
    """
    KNN(k=k, temperature=temperature)
    known = labels >= 0
    if int(known.sum()) < 2:
        raise ValueError(f"leave-one-out k-NN needs at least 2 labelled images, got {int(known.sum())}")
    bank, classes = values[known].detach().float(), labels[known].long()
    if not bank.isfinite().all():
        return float("nan")
    predicted = _classify(bank, classes, None, ks=[k], temperature=temperature, at_once=SIMILARITIES_AT_ONCE)
    return float((predicted[0] == classes).double().mean())

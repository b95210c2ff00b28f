"""Dense evaluation: what a patch's frozen features say of the classes of its pixels, measured as mIoU.

Features stay on the grid of patches; scores for every class are spread bilinearly to the pixels and the largest one
names the pixel. K classes, N patches of an image, n images or patches;
labels are 0 to K - 1, and a pixel with any other label (overlap.IGNORE) counts nowhere.

Sources: linear segmentation as in DINOv2 (Oquab et al. 2023, sec. 7.4); nearest patches as in Hummingbird (Balažević et
al. 2023, sec. 3), here with KNN's votes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from openjepa import draws
from openjepa.evaluation import logistic
from openjepa.evaluation.knn import unit

# Similarities held at one time: 64 MiB in float32.
_AT_ONCE = 2**24

Score = Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B N K"]]


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Patches to learn on: features, the share of each class among a patch's labelled pixels, and whose image's it is.

    Patches without a labelled pixel have no shares and must be left out.
    """

    values: Float[Tensor, "n D"]
    shares: Float[Tensor, "n K"]
    image: Int64[Tensor, "n"]

    def take(self, index: Tensor) -> "Patches":
        """Some of the patches, by number or by a mask."""
        return Patches(values=self.values[index], shares=self.shares[index], image=self.image[index])


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A judge that has learned: ``score`` gives every patch a score for each class."""

    score: Score
    settings: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Segmenter(Protocol):
    """Learns on patches and scores patches of other images."""

    @property
    def name(self) -> str:
        """As it stands in a table."""
        ...

    def fit(self, train: Patches) -> Fitted:
        """Learn on ``train``, and choose everything on it."""
        ...


def class_shares(masks: UInt8[Tensor, "B H W"], classes: int, patch: tuple[int, int]) -> Float[Tensor, "B N K"]:
    """The share of each class among the labelled pixels of every patch; all zero where no pixel is labelled."""
    planes = torch.stack([(masks == number).float() for number in range(classes)], 1)
    counts = F.avg_pool2d(planes, patch).flatten(2).mT
    return counts / counts.sum(2, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def to_pixels(scores: Float[Tensor, "B N K"], grid: tuple[int, int], size: tuple[int, int]) -> Int64[Tensor, "B H W"]:
    """The class of every pixel: the patches' scores, interpolated bilinearly."""
    planes = scores.mT.unflatten(2, grid)
    return F.interpolate(planes, size, mode="bilinear", align_corners=False).argmax(1)


@dataclass(frozen=True, kw_only=True)
class PatchKNN:
    """Each patch takes the shares of its ``k`` most similar training patches (cosine s), weighted exp(s / temperature).

    The bank holds at most ``bank`` training patches, chosen by ``seed``. ``k`` and ``temperature`` are KNN's.
    """

    k: int = 20
    temperature: float = 0.07
    bank: int = 10_000
    seed: int = 0
    name: str = "patch k-NN"

    def __post_init__(self) -> None:
        if self.k < 1 or not self.temperature > 0 or self.bank < 1:
            raise ValueError(
                f"patch k-NN needs k >= 1, temperature > 0 and a bank, got {self.k}, {self.temperature}, {self.bank}"
            )

    def fit(self, train: Patches) -> Fitted:
        """Keep the bank."""
        chosen = np.sort(draws.permutation(len(train.values), "patch bank", self.seed)[: self.bank])
        kept = train.take(torch.from_numpy(chosen))
        bank, k = unit(kept.values), min(self.k, len(kept.values))

        def score(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N K"]:
            parts = []
            for some in unit(tokens.flatten(0, 1)).split(max(1, _AT_ONCE // len(bank))):
                similarity, index = (some @ bank.T).topk(k)
                weight = (similarity / self.temperature).softmax(1)
                parts.append((weight[..., None] * kept.shares[index]).sum(1))
            return torch.cat(parts).unflatten(0, tokens.shape[:2])

        return Fitted(score=score, settings={"k": float(k), "patches": float(len(bank))})


@dataclass(frozen=True, kw_only=True)
class LinearSegmentation:
    """Multinomial logistic regression from a patch's standardised features to the class that most of its pixels have.

    ``strengths`` are scikit-learn's C. C is the one with the best mIoU, counted in shares of patches, on ``holdout`` of
    the training IMAGES (the smallest among equals); the model is then fitted to the patches of all of them.
    """

    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    holdout: float = 0.2
    seed: int = 0
    name: str = "linear segmentation"

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"linear segmentation needs strengths above 0, got {self.strengths}")

    def fit(self, train: Patches) -> Fitted:
        """Choose C, then fit to every patch."""
        majority = train.shares.argmax(1)
        present, labels = majority.unique(return_inverse=True)
        classes = train.shares.shape[1]
        if len(present) == 1:  # nothing to tell apart: the one class that there is
            row = F.one_hot(present, classes).to(train.values.dtype)
            return Fitted(score=lambda tokens: row.expand(*tokens.shape[:2], -1))
        features = logistic.standardise(train.values)
        strength, start = self._choose(features, train, labels, present)
        fitted = logistic.fit(features, labels, len(present), [strength], start=start, tolerance=1e-4, limit=500)

        def score(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N K"]:
            # A class that no patch mostly shows gets a logit below all others, and a finite one: it is interpolated.
            logits = _logits(fitted, features, tokens.flatten(0, 1))[0]
            every = logits.min().expand(len(logits), classes).clone() - 1
            every[:, present] = logits
            return every.unflatten(0, tokens.shape[:2])

        return Fitted(score=score, settings={"C": strength})

    def _choose(
        self, features: logistic.Standardised, train: Patches, labels: Int64[Tensor, "n"], present: Int64[Tensor, "k"]
    ) -> tuple[float, logistic.LogisticFit | None]:
        """The strength that does best on images held out of the training images, and its model to start from."""
        strengths, images = sorted(self.strengths), train.image.unique()
        if len(strengths) == 1 or len(images) < 2:
            return strengths[0], None
        order = draws.permutation(len(images), "dense holdout", self.seed)
        count = min(len(images) - 1, max(1, round(self.holdout * len(images))))
        held = torch.isin(train.image, images[torch.from_numpy(order[:count])])
        kept = (~held).nonzero()[:, 0]
        fits = logistic.fit(features.rows(kept), labels[kept], len(present), strengths, tolerance=1e-3, limit=200)
        answers = present[_logits(fits, features, train.values[held]).argmax(2)]
        scores = [_share_miou(answer, train.shares[held]) for answer in answers]
        best = int(np.argmax(scores))
        return strengths[best], fits.only(best)


def _logits(
    fitted: logistic.LogisticFit, features: logistic.Standardised, values: Float[Tensor, "n D"]
) -> Float[Tensor, "G n k"]:
    scaled = (values - features.mean) / features.deviation
    return torch.stack([scaled @ w.T + b for w, b in zip(fitted.weights, fitted.bias, strict=True)])


def _share_miou(answer: Int64[Tensor, "n"], shares: Float[Tensor, "n K"]) -> float:
    """mIoU where a patch, named as a whole, counts with the shares of its pixels."""
    named = F.one_hot(answer, shares.shape[1]).to(shares.dtype)
    intersection = (named * shares).sum(0)
    union = named.sum(0) + shares.sum(0) - intersection
    return float((intersection / union)[union > 0].mean())

"""Full fine-tuning: every weight of an encoder learns the labels, lower layers more slowly.

As in MAE (He et al. 2022, app. A.2) and BEiT (Bao et al. 2022): AdamW, learning rates that shrink by ``layer_decay``
from each layer to the one below, warm-up and cosine, label smoothing, and a linear head on the average of the normed
tokens.
Without mixup, cutmix and drop path, which pay in schedules longer than a small data set's.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa import draws
from openjepa.evaluation.features import Outcome, with_gradients
from openjepa.evaluation.layer_decay import parameter_groups, share_of_rate
from openjepa.evaluation.split import split

_RATIO = (math.log(3 / 4), math.log(4 / 3))
_TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """An encoder to begin with, which is copied and never changed.

    Attributes:
        encoder: prepared images "B C H W" to normed tokens "B N D".
        width: D.
        normalise: from images as they are stored (uint8, or float in 0..1) to what the encoder reads.
    """

    encoder: nn.Module
    width: int
    normalise: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Prepared images, not normalised, with the class of each."""

    images: Shaped[Tensor, "n C H W"]
    labels: Int64[np.ndarray, "n"]

    def take(self, index: Int64[np.ndarray, "m"]) -> "Labelled":
        """Some of the images."""
        return Labelled(images=self.images[torch.from_numpy(index)], labels=self.labels[index])


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """PyTorch's generators of the CPU and of a CUDA ``device`` begin at ``seed`` within, for modules that draw from
    them, and are put back after."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


class FineTuned(nn.Module):
    """A copy of an encoder with a linear head on the average of its tokens."""

    def __init__(self, backbone: Backbone, classes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(backbone.encoder).requires_grad_(True)
        self.head = nn.Linear(backbone.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The logits of normalised images."""
        return self.head(self.encoder(x).mean(1))


def cropped(
    x: Float[Tensor, "B C H W"], u: Float64[np.ndarray, "B 5"], scale: tuple[float, float], *, flip: bool
) -> Float[Tensor, "B C H W"]:
    """Random resized crops of these shares of the area, half of them mirrored where ``flip``; a function of u."""
    area = scale[0] + (scale[1] - scale[0]) * u[:, 0]
    ratio = np.exp(_RATIO[0] + (_RATIO[1] - _RATIO[0]) * u[:, 1])
    high, wide = np.minimum(1, np.sqrt(area / ratio)), np.minimum(1, np.sqrt(area * ratio))
    down, across = (2 * u[:, 2] - 1) * (1 - high), (2 * u[:, 3] - 1) * (1 - wide)
    theta = np.zeros((len(u), 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 0, 2] = np.where(flip & (u[:, 4] < 0.5), -wide, wide), across
    theta[:, 1, 1], theta[:, 1, 2] = high, down
    grid = F.affine_grid(torch.from_numpy(theta).to(x.device), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Fine-tune on the train part, with the best of ``rates`` on a part held out of it, and predict the test part.

    Attributes:
        epochs: passes over the images, in every trial and in the last training.
        batch: images of a step.
        rates: the head's highest learning rates to try; the smallest of equals wins.
        layer_decay: a layer's rate over that of the layer above it.
        weight_decay: of matrices.
        warmup: share of the steps.
        smoothing: of the labels.
        crop_scale: share of the area of a random crop.
        flip: whether half of the images are mirrored.
        holdout: share of each class of the train part to choose the rate on.
        seed: of head, order and crops.
    """

    epochs: int = 10
    batch: int = 32
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.1
    smoothing: float = 0.1
    crop_scale: tuple[float, float] = (0.4, 1.0)
    flip: bool = False
    holdout: float = 0.2
    seed: int = 0
    name: str = "fine-tuning"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.rates or min(self.rates) <= 0:
            raise ValueError(
                f"fine-tuning needs epochs, a batch and rates above 0, got {self.epochs}, {self.batch} and {self.rates}"
            )
        if not 0 < self.layer_decay <= 1 or not 0 <= self.warmup < 1 or not 0 < self.holdout < 1:
            raise ValueError(
                f"fine-tuning needs layer_decay in (0, 1], warmup in [0, 1) and holdout in (0, 1), "
                f"got {self.layer_decay}, {self.warmup} and {self.holdout}"
            )

    def steps(self, labels: Int64[np.ndarray, "n"]) -> int:
        """All steps that :meth:`classify` takes on a train part with these labels."""
        trials = len(self.rates) * self._steps(len(split(labels, self.holdout, self.seed)[0])) if self._chooses else 0
        return trials + self._steps(len(labels))

    def seconds_a_step(self, backbone: Backbone, train: Labelled) -> float:
        """The time of a step, from a few on a copy that is thrown away."""
        some = train.take(np.arange(len(train.labels))[: self.batch])
        timed = FineTuning(epochs=_TIMED_STEPS, batch=self.batch, rates=self.rates[:1], warmup=0.0)
        marks = [time.perf_counter()]
        timed._trained(backbone, some, self.rates[0], lambda: marks.append(time.perf_counter()))
        return float(np.median(np.diff(marks)[1:]))

    def classify(
        self, backbone: Backbone, train: Labelled, test: Labelled, advance: Callable[[], None] = lambda: None
    ) -> Outcome:
        """The prediction for each test image, and the rate chosen; ``advance`` is called after every step."""
        rate = self._choose(backbone, train, advance) if self._chooses else self.rates[0]
        model = self._trained(backbone, train, rate, advance)
        predicted = self._predict(model, backbone, train.labels, test.images)
        settings = {"lr": rate, "epochs": float(self.epochs), "layer_decay": self.layer_decay}
        return Outcome(predicted=predicted, correct=predicted == test.labels, settings=settings)

    @property
    def _chooses(self) -> bool:
        return len(self.rates) > 1

    def _steps(self, images: int) -> int:
        return self.epochs * -(-images // self.batch)

    def _choose(self, backbone: Backbone, train: Labelled, advance: Callable[[], None]) -> float:
        kept, held = (train.take(part) for part in split(train.labels, self.holdout, self.seed))
        rates, right = sorted(self.rates), []
        for rate in rates:
            model = self._trained(backbone, kept, rate, advance)
            right.append((self._predict(model, backbone, kept.labels, held.images) == held.labels).sum())
        return rates[int(np.argmax(right))]

    @with_gradients()
    def _trained(self, backbone: Backbone, train: Labelled, rate: float, advance: Callable[[], None]) -> FineTuned:
        classes, codes = np.unique(train.labels, return_inverse=True)
        device = next(backbone.encoder.parameters()).device
        with seeded(self.seed, device):  # a module's first weights, and another library's dropout
            return self._train(backbone, train.images, codes, len(classes), rate, device, advance).eval()

    def _train(
        self,
        backbone: Backbone,
        images: Shaped[Tensor, "n C H W"],
        codes: Int64[np.ndarray, "n"],
        classes: int,
        rate: float,
        device: torch.device,
        advance: Callable[[], None],
    ) -> FineTuned:
        head = torch.Generator().manual_seed(self.seed)
        model = FineTuned(backbone, classes, generator=head).to(device).train()
        groups = parameter_groups(
            model.encoder, model.head, rate=rate, layer_decay=self.layer_decay, weight_decay=self.weight_decay
        )
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999))
        step, steps = 0, self._steps(len(codes))
        for epoch in range(self.epochs):
            order = draws.permutation(len(codes), "fine-tuning order", self.seed, epoch)
            for chosen in np.split(order, np.arange(self.batch, len(order), self.batch)):
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["scale"] * share_of_rate(step, steps, self.warmup)
                u = draws.uniform("fine-tuning crop", self.seed, epoch, chosen[:, None], np.arange(5))
                x = backbone.normalise(images[torch.from_numpy(chosen)].to(device))
                logits = model(cropped(x, u, self.crop_scale, flip=self.flip))
                labels = torch.from_numpy(codes[chosen].astype(np.int64)).to(device)
                optimizer.zero_grad()
                F.cross_entropy(logits, labels, label_smoothing=self.smoothing).backward()
                optimizer.step()
                step += 1
                advance()
        return model

    @torch.inference_mode()
    def _predict(
        self, model: FineTuned, backbone: Backbone, labels: Int64[np.ndarray, "n"], images: Shaped[Tensor, "m C H W"]
    ) -> Int64[np.ndarray, "m"]:
        device = next(model.parameters()).device
        answers = [model(backbone.normalise(some.to(device))).argmax(1).cpu() for some in images.split(2 * self.batch)]
        return np.unique(labels)[torch.cat(answers).numpy()]

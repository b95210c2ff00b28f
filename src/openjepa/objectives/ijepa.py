"""I-JEPA: predict, from a context block, the features that a slowly moving copy of the encoder gives to target blocks.

Source: Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", CVPR 2023,
sec. 3 and app. A.1.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openjepa.encoder import Encoder, EncoderConfig, Predictor, PredictorConfig
from openjepa.grid import take
from openjepa.masks import Masks
from openjepa.objectives.base import Objective, Output
from openjepa.objectives.noise import gaussian
from openjepa.objectives.spread import moments, places_and_images, variance_covariance
from openjepa.objectives.targets import RunningNorm, TargetNorm
from openjepa.settings import check_settings

_LOSSES = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "l1": F.l1_loss}


@dataclass(frozen=True, kw_only=True)
class IJEPAConfig:
    """Settings of the objective; the defaults are the published implementation's.

    Attributes:
        momentum: EMA momentum of the target encoder at the first and (not quite reached) last step, linear between.
        loss: ``smooth_l1`` (beta 1, published code), ``l2`` (the paper's text) or ``l1``.
        target_norm: ``layer`` (an affine-free LayerNorm, published); the others standardise its result further, by
            running statistics: ``feature``, ``position`` (of every place) or ``whiten``.
        statistics_momentum: momentum of these running statistics.
        target_depths: blocks of the target encoder whose outputs are predicted, each normalised and side by side; 0 is
            before the first block. Empty: the last one after the final norm, as published.
        variance_covariance: weight of VICReg's variance and covariance terms on the mean of an image's context
            features (objectives/spread.py), 0 as published.
        position_noise: standard deviation of the noise on the positions that are asked for, in units of the context
            features, whose embedding it goes through so that it cannot be unlearned (StoP: Bar et al., "Stochastic
            positional embeddings improve masked image modeling", ICML 2024, sec. 3); 0 as published.
    """

    momentum: tuple[float, float] = (0.996, 1.0)
    loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"
    target_norm: TargetNorm = "layer"
    statistics_momentum: float = 0.9
    target_depths: tuple[int, ...] = ()
    variance_covariance: float = 0.0
    position_noise: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)
        if not all(0 <= m <= 1 for m in (*self.momentum, self.statistics_momentum)):
            raise ValueError(f"EMA momenta lie in [0, 1], got {self.momentum} and {self.statistics_momentum}")
        if min(self.target_depths, default=0) < 0:
            raise ValueError(f"target_depths are counted from 0, before the first block, got {self.target_depths}")
        if not 0 <= self.variance_covariance < math.inf:
            raise ValueError(f"a weight is a number of 0 or more, got variance_covariance={self.variance_covariance}")
        if not 0 <= self.position_noise < math.inf:
            raise ValueError(f"position_noise is a standard deviation, 0 or more, got {self.position_noise}")

    @property
    def layers(self) -> int:
        """How many layers of the target encoder are predicted, side by side."""
        return max(1, len(self.target_depths))

    def check_depths(self, encoder: EncoderConfig) -> None:
        """Refuse ``target_depths`` that an encoder has not.

        Raises:
            ValueError: names the first of them.
        """
        wrong = [depth for depth in self.target_depths if depth > encoder.depth]
        if wrong:
            raise ValueError(
                f"ijepa.target_depths lie between 0 and the encoder's depth of {encoder.depth}, got {wrong[0]}"
            )


def _mean(tokens: Float[Tensor, "R K D"], masks: Masks) -> Float[Tensor, "R D"]:
    """The mean over the tokens that are there; padding is zero."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens.mean(1) if masks.context_packed is None else tokens.sum(1) / masks.context_valid.sum(1, keepdim=True)


def _mean_std(rows: Float[Tensor, "R D"]) -> Tensor:
    """The standard deviation of each feature over the rows, and of these the mean.

    In a quarter of the time of ``Tensor.std`` down the rows on a CPU, 2% of a small step; from the first row, so that
    rows that are nearly alike lose no digits.
    """
    apart = rows - rows[:1]
    variance = apart.square().mean(0) - apart.mean(0).square()
    return (variance.clamp_min(0) * len(rows) / max(1, len(rows) - 1)).sqrt().mean()


def _each_set(x: Float[Tensor, "B C *S"], masks: Masks) -> Float[Tensor, "R C *S"]:
    """The images, each as often as it has mask sets."""
    sets = masks.sets(len(x))
    return x.repeat_interleave(sets, 0) if sets > 1 else x


class IJEPA(Objective):
    """Context encoder, EMA target encoder and predictor.

    Args:
        encoder: architecture of the context and target encoders.
        predictor: architecture of the predictor.
        config: see :class:`IJEPAConfig`.
        generator: for the initial weights.

    Raises:
        ValueError: ``target_depths`` beyond the encoder's.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        predictor: PredictorConfig,
        config: IJEPAConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config or IJEPAConfig()
        self.config.check_depths(encoder)
        self.context_encoder = Encoder(encoder, generator=generator)
        values = encoder.width * self.config.layers
        self.predictor = Predictor(
            predictor, grid=encoder.grid, inputs=encoder.width, outputs=values, generator=generator
        )
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        self._surveyed: Tensor | None = None
        self.standardise = None
        if self.config.target_norm != "layer":
            self.standardise = RunningNorm(
                self.config.target_norm,
                tokens=encoder.grid.size,
                values=values,
                momentum=self.config.statistics_momentum,
            )

    @property
    def representation(self) -> Encoder:
        """The target encoder, which the paper evaluates."""
        return self.target_encoder

    def targets(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B N O"]:
        """The normalised features of every token, from the target encoder that sees the whole signal."""
        return self._standardised(self._features(x))

    @torch.no_grad()
    def _standardised(self, features: Float[Tensor, "B N O"]) -> Float[Tensor, "B N O"]:
        return features if self.standardise is None else self.standardise(features)

    @torch.no_grad()
    def _features(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B N O"]:
        """What targets are before they are standardised by the run's statistics, under LayerNorm alone."""
        teacher = self.target_encoder
        if self.config.target_depths:
            stream = teacher.depths(x, until=max(self.config.target_depths))
            layers = [stream[depth] for depth in self.config.target_depths]
        else:
            layers = [teacher(x)]
        return torch.cat([F.layer_norm(layer.float(), layer.shape[-1:]) for layer in layers], -1)

    def forward(self, x: Float[Tensor, "B C *S"], masks: Masks) -> Output:
        """The mean loss over images, mask sets, blocks, tokens and features, plus the weighted terms of the spread.

        Raises:
            ValueError: images or masks are of another grid or number than can be, or the masks bring no keys to draw
                ``position_noise`` from.
        """
        sets = self.check(x, masks)
        features = self._features(x)
        target = take(self._standardised(features).repeat_interleave(sets, 0), masks.targets.flatten(1)).view(
            *masks.targets.shape, -1
        )
        context = self.context_encoder(_each_set(x, masks), masks.context, masks.context_packed)
        noise = self._position_noise(masks)
        predicted = self.predictor(context, masks.context, masks.targets, masks.context_packed, noise)
        loss = _LOSSES[self.config.loss](predicted.float(), target)
        # Before the run's statistics, which would make any spread one.
        metrics = {"target_std": _mean_std(features.flatten(0, 1))}
        metrics |= places_and_images(target, predicted, masks.targets, self.context_encoder.config.grid.size)
        if self.config.variance_covariance:
            metrics["prediction_loss"] = loss
            pooled, whole = _mean(context, masks), self._surveyed
            if whole is None:
                whole = moments(pooled)
                self.add_up([whole])
            variance, covariance = variance_covariance(pooled, whole)
            metrics |= {"variance_term": variance, "covariance_term": covariance}
            loss = loss + self.config.variance_covariance * (variance + covariance)
        return Output(loss, metrics)

    def _position_noise(self, masks: Masks) -> Float[Tensor, "R M T D"] | None:
        if not self.config.position_noise:
            return None
        if masks.keys is None:
            raise ValueError("ijepa.position_noise is drawn from Masks.keys; MultiBlockMasking brings them")
        shape = (*masks.targets.shape, self.predictor.embed.in_features)
        return self.config.position_noise * gaussian(masks.keys, 0, math.prod(shape[1:])).view(shape)

    @torch.no_grad()
    def survey(self, parts: Iterable[tuple[Tensor, Masks]]) -> None:
        """The covariance of the context features is the whole step's: it is taken in a pass of its own."""
        if not self.config.variance_covariance:
            return
        sums = []
        for x, masks in parts:
            context = self.context_encoder(_each_set(x, masks), masks.context, masks.context_packed)
            sums.append(moments(_mean(context, masks)))
        self._surveyed = torch.stack(sums).sum(0)
        self.add_up([self._surveyed])

    @property
    def gathered(self) -> list[Tensor]:
        """The sums behind the running statistics of the targets, where there are any."""
        return [] if self.standardise is None else [self.standardise.sums, self.standardise.products]

    def settings(self, progress: float) -> dict[str, float]:
        """The EMA momentum at ``progress``; before the run's beginning and after its end it is as there."""
        start, end = self.config.momentum
        return {"momentum": start + (end - start) * min(1.0, max(0.0, progress))}

    def after_step(self, progress: float) -> None:
        """Move the target encoder towards the context encoder, many tensors at once, and the statistics along."""
        momentum = self.settings(progress)["momentum"]
        targets, contexts = [*self.target_encoder.parameters()], [*self.context_encoder.parameters()]

        def move(own: list[int]) -> None:
            moved: list[Tensor] = [targets[place] for place in own]
            towards: list[Tensor] = [contexts[place] for place in own]
            # Not torch._foreach_lerp_: its rounding differs from the published order, which shows after 100 steps.
            torch._foreach_mul_(moved, momentum)
            torch._foreach_add_(moved, towards, alpha=1 - momentum)

        self.divide([target.numel() for target in targets], move)
        self._surveyed = None
        if self.standardise is not None:
            self.standardise.update()

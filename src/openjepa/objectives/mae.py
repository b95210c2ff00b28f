"""MAE: reconstruct, from a quarter of the patches, the pixels of all others.

Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, sec. 3. The paper's auxiliary class
token is left out, as it says one may (app. A.1): the encoder is then that of I-JEPA, and its features are averaged.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openjepa.encoder import Encoder, EncoderConfig, Predictor, PredictorConfig
from openjepa.errors import InputError
from openjepa.grid import patchify, take
from openjepa.masks import Masks
from openjepa.objectives.base import Objective, Output
from openjepa.objectives.spread import places_and_images

_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Settings of the objective; the defaults are the paper's.

    Attributes:
        visible: share of the patches that the encoder sees.
        normalise: whether the pixels to predict have each patch's mean taken out and its deviation made 1.
    """

    visible: float = 0.25
    normalise: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.visible < 1:
            raise ValueError(f"mae.visible is a share of the patches between 0 and 1, got {self.visible}")


class MAE(Objective):
    """An encoder of the visible patches, and a light decoder of the others' pixels.

    Args:
        encoder: architecture of the encoder.
        decoder: architecture of the decoder, which is a predictor with pixels as outputs.
        config: see :class:`MAEConfig`.
        generator: for the initial weights.

    Raises:
        InputError: patches of one value, which cannot be normalised.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        decoder: PredictorConfig,
        config: MAEConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config or MAEConfig()
        self.encoder = Encoder(encoder, generator=generator)
        values = self.encoder.embed.in_features
        if values < 2 and self.config.normalise:
            raise InputError(
                "a patch of one value has no variance to normalise it by: a larger --encoder.patch, or "
                "--mae.no-normalise"
            )
        self.decoder = Predictor(decoder, grid=encoder.grid, inputs=encoder.width, outputs=values, generator=generator)

    @property
    def representation(self) -> Encoder:
        """The encoder."""
        return self.encoder

    def targets(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B N P"]:
        """The pixels of every patch, normalised by the patch's own mean and (unbiased) variance (sec. 3)."""
        patches = patchify(x, self.encoder.config.patch).float()
        if not self.config.normalise:
            return patches
        variance, mean = torch.var_mean(patches, -1, keepdim=True)
        return (patches - mean) * (variance + _EPS).rsqrt()

    def forward(self, x: Float[Tensor, "B C *S"], masks: Masks) -> Output:
        """The mean squared error over the pixels of the hidden patches.

        Raises:
            ValueError: images or masks are of another grid than the decoder's, or not as many as the others.
        """
        self.check_single(x, masks)
        context = self.encoder(x, masks.context, masks.context_packed)
        predicted = self.decoder(context, masks.context, masks.targets, masks.context_packed)
        target = take(self.targets(x), masks.targets.flatten(1)).view_as(predicted)
        metrics = places_and_images(target, predicted, masks.targets, self.encoder.config.grid.size)
        return Output(F.mse_loss(predicted.float(), target), metrics)

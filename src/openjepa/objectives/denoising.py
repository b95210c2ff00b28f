"""The denoising autoencoder: corrupt the pixels, encode everything, reconstruct the clean pixels.

Source: Vincent et al., "Stacked Denoising Autoencoders", JMLR 2010, sec. 3.3 (Gaussian and masking noise) and sec. 2.4
(squared error); here with a transformer as encoder and decoder, trained as a whole instead of layer by layer.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from openjepa.encoder import Encoder, EncoderConfig, Predictor, PredictorConfig
from openjepa.grid import patchify
from openjepa.masks import Masks
from openjepa.objectives.base import Objective, Output
from openjepa.objectives.noise import gaussian, uniform
from openjepa.objectives.spread import places_and_images


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """Settings of the objective.

    Attributes:
        noise: standard deviation of the Gaussian noise, in standard deviations of the images (the input is normalised).
        masked: share of the input's values that are set to 0, the mean of the images (masking noise).
    """

    noise: float = 0.5
    masked: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf or not 0 <= self.masked < 1:
            raise ValueError(
                f"denoising.noise is 0 or more and denoising.masked a share in [0, 1), got {self.noise}, {self.masked}"
            )
        if not self.noise and not self.masked:
            raise ValueError("denoising needs noise to take away: denoising.noise and denoising.masked are both 0")


class Denoising(Objective):
    """An encoder of the whole corrupted signal, and a light decoder of its clean pixels.

    Args:
        encoder: architecture of the encoder.
        decoder: architecture of the decoder.
        config: see :class:`DenoisingConfig`.
        generator: for the initial weights.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        decoder: PredictorConfig,
        config: DenoisingConfig | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config or DenoisingConfig()
        self.encoder = Encoder(encoder, generator=generator)
        values = self.encoder.embed.in_features
        self.decoder = Predictor(decoder, grid=encoder.grid, inputs=encoder.width, outputs=values, generator=generator)
        self.decoder.mask_token.requires_grad_(False)  # nothing is hidden

    @property
    def representation(self) -> Encoder:
        """The encoder."""
        return self.encoder

    def corrupt(self, x: Float[Tensor, "B C *S"], keys: Int64[Tensor, "B"]) -> Float[Tensor, "B C *S"]:
        """The signal with noise added, then a share of its values set to 0; a function of the keys alone."""
        values = x.flatten(1)
        count = values.shape[1]
        if self.config.noise:
            values = values + self.config.noise * gaussian(keys, 0, count)
        if self.config.masked:
            values = values * (uniform(keys, 2, count) >= self.config.masked)
        return values.view_as(x).to(x.dtype)

    def forward(self, x: Float[Tensor, "B C *S"], masks: Masks) -> Output:
        """The mean squared error over all pixels of all patches.

        Raises:
            ValueError: the masks bring no keys to draw the noise from, or images or masks are of another grid than the
                decoder's, or not as many as the others.
        """
        self.check_single(x, masks)
        if masks.keys is None:
            raise ValueError("the denoising autoencoder draws its noise from Masks.keys; WholeMasking brings them")
        features = self.encoder(self.corrupt(x, masks.keys), masks.context)
        predicted = self.decoder.reconstruct(features, masks.context)
        target = patchify(x, self.encoder.config.patch).float()
        one_block = (target[:, None], predicted[:, None], masks.context[:, None])
        metrics = places_and_images(*one_block, self.encoder.config.grid.size)
        return Output(F.mse_loss(predicted.float(), target), metrics)

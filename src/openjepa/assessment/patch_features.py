"""Features of the patches of images that have masks: the encoder's, a random one's, and the pixels themselves."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from openjepa import draws
from openjepa.assessment.twin import random_twin
from openjepa.data.augmentation import to_unit
from openjepa.data.base import BadImage
from openjepa.data.loader import BadRecord
from openjepa.data.masks import MaskedImages
from openjepa.errors import InputError
from openjepa.evaluation.dense import Patches, class_shares
from openjepa.evaluation.suite import PIXELS, RANDOM, TARGET
from openjepa.pretrained import Pretrained
from openjepa.progress import progress

# Patches to learn on, over all images: enough for a linear layer, and 60 MB at a width of 768.
_PATCHES = 20_000
_BATCH = 32

Encoders = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True, kw_only=True)
class MaskedView:
    """The images as the encoders see them; ``bad`` takes those that cannot be read, when they are met."""

    pretrained: Pretrained
    data: MaskedImages
    seed: int
    encoders: Encoders
    bad: list[BadRecord] = field(default_factory=list)

    @property
    def patch(self) -> tuple[int, int]:
        rows, columns = self.pretrained.encoder.config.patch
        return rows, columns

    @property
    def grid(self) -> tuple[int, int]:
        (height, width), (rows, columns) = self.pretrained.preprocessing.size, self.patch
        return height // rows, width // columns

    def batches(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor, UInt8[Tensor, "B H W"]]]:
        """Numbers, prepared images and masks; an image that cannot be read is left out."""
        with progress("images") as advance:
            for start in range(0, len(chosen), _BATCH):
                numbers, images, masks = [], [], []
                for number in chosen[start : start + _BATCH].tolist():
                    try:
                        pixels, mask = self.data.read(number, self.pretrained.preprocessing)
                    except BadImage as error:
                        self.bad.append(BadRecord(number, error.reference, error.reason, -1))
                        continue
                    numbers.append(number)
                    images.append(to_unit(pixels))
                    masks.append(torch.from_numpy(mask))
                if numbers:
                    yield np.array(numbers), torch.stack(images), torch.stack(masks)
                advance(min(start + _BATCH, len(chosen)), len(chosen))


def patch_encoders(pretrained: Pretrained) -> Encoders:
    """Features of every patch, three ways."""
    random, patch = random_twin(pretrained), pretrained.encoder.config.patch

    def pixels(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        # Normalised, so that cosines tell bright from dark: without a mean taken off, all pixels point one way.
        return F.unfold(pretrained.preprocessing.normalise(images), patch, stride=patch).mT

    return {
        TARGET: lambda images: pretrained.features(images).cpu(),
        RANDOM: lambda images: random.features(images).cpu(),
        PIXELS: pixels,
    }


@torch.inference_mode()
def patches_to_learn(view: MaskedView, chosen: np.ndarray) -> dict[str, Patches]:
    """Patches of the images to learn on, the same number of each image, under every encoder."""
    per_image = -(-_PATCHES // len(chosen))
    place = np.arange(view.grid[0] * view.grid[1])
    values: dict[str, list[Tensor]] = {name: [] for name in view.encoders}
    shares, owners = [], []
    for numbers, images, masks in view.batches(chosen):
        key = draws.bits("patches to learn on", view.seed, numbers[:, None], place)
        kept = torch.from_numpy(np.sort(np.argsort(key, axis=1)[:, :per_image], axis=1))[..., None]
        share = class_shares(masks, len(view.data.values), view.patch)
        shares.append(_taken(share, kept))
        owners.append(torch.from_numpy(numbers).repeat_interleave(kept.shape[1]))
        for name, encode in view.encoders.items():
            values[name].append(_taken(encode(images), kept))
    if not shares:
        raise InputError(f"none of the images in {view.data.images.name} can be read")
    share, owner = torch.cat(shares), torch.cat(owners)
    labelled = share.sum(1) > 0
    if not labelled.any():
        raise InputError("no pixel of the images to learn on is labelled: every mask holds 255 there")
    return {
        name: Patches(values=torch.cat(parts), shares=share, image=owner).take(labelled)
        for name, parts in values.items()
    }


def _taken(tokens: Float[Tensor, "B N D"], index: Shaped[Tensor, "B K 1"]) -> Float[Tensor, "n D"]:
    return tokens.gather(1, index.expand(-1, -1, tokens.shape[2])).flatten(0, 1)

"""From an image to the tensor that an encoder sees: channels, crop, size, and the numbers to normalise with.

Crops are functions of given uniform numbers, so that nothing here has a state. Boxes are (top, left, height, width).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Num, UInt8
from torch import Tensor

from openjepa.data.base import BadImage, Picture
from openjepa.data.pixels import Pixels, extent_of, nearest, resize_matrix, resized, to_unit, with_channels

Statistics = tuple[Tensor, Tensor]
_TRIES = 10
# Uniform numbers for one image: area and aspect of each try, the place (2), the flip.
NUMBERS = 2 * _TRIES + 3


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the encoder's input; the same in training, evaluation and export.

    Attributes:
        size: height and width in pixels.
        channels: number of channels.
        mean: of each channel, in units where white is 1.
        std: of each channel, in the same units.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size needs a positive height and width, got {self.size}")
        if self.channels < 1 or len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"{self.channels} channels need as many means and stds, got {self.mean} and {self.std}")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(f"means must be finite and stds positive, got {self.mean} and {self.std}")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """From what :meth:`to_json` gave."""
        height, width = values["size"]
        return cls(
            size=(int(height), int(width)),
            channels=int(values["channels"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
        )

    @property
    def at_least(self) -> tuple[int, int] | None:
        """The height and width that a file's pixels must keep for :meth:`fit`; None for all of them."""
        return self.size

    def fit(self, image: Picture) -> Pixels:
        """The largest central part of the image with the wanted aspect, resized; 8 bits stay 8 bits.

        Raises:
            BadImage: the image's channels cannot become the wanted ones.
        """
        image = with_channels(image, self.channels)
        box = _central_box(*extent_of(image), self.size[1] / self.size[0], (1.0, 1.0))
        return resized(image, box, self.size)

    def fit_mask(self, mask: UInt8[np.ndarray, "_H _W"]) -> UInt8[np.ndarray, "_h _w"]:
        """The same part of an image's mask of class numbers, at the same size, without new numbers between them."""
        height, width = mask.shape
        box = _central_box(height, width, self.size[1] / self.size[0], (1.0, 1.0))
        return nearest(mask, box, self.size)

    def normalise(
        self, images: Num[Tensor, "B C H W"], statistics: Statistics | None = None
    ) -> Float32[Tensor, "B C H W"]:
        """Subtract the mean and divide by the standard deviation; 8-bit images are brought to 0..1 first.

        ``statistics`` are :meth:`statistics` on the images' device, for who has many images there to normalise: to
        bring them there anew is to wait for it.
        """
        if images.shape[1] != self.channels:
            raise ValueError(f"images have {images.shape[1]} channels, the preprocessing is for {self.channels}")
        mean, std = self.statistics(images.device) if statistics is None else statistics
        return (to_unit(images) - mean) / std

    def denormalise(self, images: Float32[Tensor, "B C H W"]) -> Float32[Tensor, "B C H W"]:
        """The inverse of :meth:`normalise`: values in 0..1 for what came from an image."""
        mean, std = self.statistics(images.device)
        return images * std + mean

    def pictures(self, images: Num[Tensor, "B C H W"]) -> UInt8[np.ndarray, "B H W C"]:
        """8-bit arrays to look at, of images that are not normalised (uint8, or float in 0..1).

        Images of more bits that all end below half of white, as 12 bits in a 16-bit file, are shown to their brightest.
        """
        unit = to_unit(images.detach())
        if images.dtype != torch.uint8 and unit.numel() and 0 < (brightest := unit.max().item()) < 0.5:
            unit = unit / brightest
        pixels = (unit * 255).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy()

    def statistics(self, device: torch.device) -> Statistics:
        """Mean and standard deviation as tensors on the device."""
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The random part of training images: a resized crop (Szegedy et al. 2015, sec. 6), perhaps a mirror image.

    Attributes:
        crop_scale: share of the image's area that a crop covers, uniform between these.
        crop_ratio: the crop's aspect (width over height) relative to the output's, log-uniform between these.
        flip: whether half of the images are mirrored left to right.
    """

    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale needs 0 < low <= high <= 1, got {self.crop_scale}")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio needs 0 < low <= high, got {self.crop_ratio}")

    def at_least(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that an image should keep, so that its smallest crop is not enlarged to ``size``."""
        low, high = self.crop_ratio
        factor = math.sqrt(max(high, 1 / low) / self.crop_scale[0])
        return math.ceil(size[0] * factor), math.ceil(size[1] * factor)


def augment(
    image: Picture, preprocessing: Preprocessing, augmentation: Augmentation, u: Float64[np.ndarray, "U"]
) -> Pixels:
    """A random crop of the image, resized, a function of the NUMBERS uniform numbers ``u``; 8 bits stay 8 bits.

    Raises:
        BadImage: the image's channels cannot become the wanted ones.
    """
    image = with_channels(image, preprocessing.channels)
    numbers = u.tolist()
    box = crop_box(*extent_of(image), preprocessing.size, augmentation, numbers)
    pixels = resized(image, box, preprocessing.size)
    return pixels.flip(-1) if augmentation.flip and numbers[-1] < 0.5 else pixels


def augment_array(
    images: UInt8[np.ndarray, "B H W C"],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    u: Float64[np.ndarray, "B U"],
) -> UInt8[Tensor, "B _C _H _W"]:
    """:func:`augment` for many small images of one size at once, by matrix products (a few times as fast).

    Raises:
        BadImage: the images' channels cannot become the wanted ones.
    """
    height, width, channels = images.shape[1:]
    if channels != preprocessing.channels and (channels, preprocessing.channels) != (1, 3):
        raise BadImage("image", f"has {channels} channels, {preprocessing.channels} are wanted")
    size, numbers = preprocessing.size, u.tolist()
    boxes = [crop_box(height, width, size, augmentation, own) for own in numbers]
    rows = torch.stack([resize_matrix(top, extent, height, size[0]) for top, _, extent, _ in boxes])
    columns = torch.stack([resize_matrix(left, extent, width, size[1]) for _, left, _, extent in boxes])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32)
    pixels = rows[:, None] @ pixels @ columns[:, None].mT
    if augmentation.flip:
        mirrored = torch.from_numpy(u[:, -1] < 0.5)
        pixels[mirrored] = pixels[mirrored].flip(-1)
    pixels = pixels.round_().clamp_(0, 255).to(torch.uint8)
    return pixels.expand(-1, preprocessing.channels, -1, -1).contiguous()


def crop_box(
    height: int, width: int, size: tuple[int, int], augmentation: Augmentation, u: list[float]
) -> tuple[int, int, int, int]:
    """A random crop: the first of ten tries that fits into the image, else the largest of fair aspect anywhere."""
    aspect = size[1] / size[0]
    low, high = augmentation.crop_scale
    narrow, wide = (math.log(ratio) for ratio in augmentation.crop_ratio)
    for attempt in range(_TRIES):
        area = height * width * (low + (high - low) * u[2 * attempt])
        ratio = aspect * math.exp(narrow + (wide - narrow) * u[2 * attempt + 1])
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            break
    else:
        _, _, crop_height, crop_width = _central_box(height, width, aspect, augmentation.crop_ratio)
    top = int(u[2 * _TRIES] * (height - crop_height + 1))
    return top, int(u[2 * _TRIES + 1] * (width - crop_width + 1)), crop_height, crop_width


def _central_box(height: int, width: int, aspect: float, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central box whose aspect (width over height), relative to ``aspect``, lies in ``ratio``."""
    low, high = aspect * ratio[0], aspect * ratio[1]
    crop_height = max(1, min(height, round(width / low)))
    crop_width = max(1, min(width, round(height * high)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

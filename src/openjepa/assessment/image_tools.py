"""Other libraries' own ways from an image to their models' input, for images and for masks."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image
from torch import Tensor

from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Picture
from openjepa.data.masks import UNLABELLED
from openjepa.data.pixels import Pixels, as_image, with_channels
from openjepa.errors import InputError

# Before the description of the tools, so that no cache takes features of JPEGs that were read smaller for these.
WHOLE = "whole files; "
# How far from 0 and 1 black and white may come out.
_OFF = 0.02


@runtime_checkable
class Tools(Protocol):
    """A model's own image tools: they take an 8-bit image and give "C H W"; objects, since they go to the loader's
    processes."""

    def __call__(self, image: Image.Image) -> Tensor:
        """The image in [0, 1], before mean and deviation."""
        ...

    def nearest(self, mask: Image.Image) -> Tensor:
        """The same part of a mask at the same size, as numbers of the mask, none blended."""
        ...


@dataclass(frozen=True, kw_only=True)
class ForeignPreprocessing(Preprocessing):
    """The other library's own way from an image to numbers in [0, 1], before mean and deviation.

    ``text`` says it in words, for the cache.
    """

    process: Tools = field(compare=False, repr=False)
    text: str = ""

    @property
    def at_least(self) -> None:
        """All of a file's pixels: what the tools resize to, before they cut, only they know."""
        return None

    def fit(self, image: Picture) -> Pixels:
        """The image as the model's own tools would cut and resize it."""
        picture = with_channels(image, self.channels)
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8:
                unit = picture / np.iinfo(picture.dtype).max if picture.dtype.kind == "u" else picture
                picture = (unit * 255).round().astype(np.uint8)
            picture = as_image(picture)
        return self.process(picture).float().clamp(0, 1)

    def fit_mask(self, mask: UInt8[np.ndarray, "_H _W"]) -> UInt8[np.ndarray, "_h _w"]:
        """The same part of an image's mask; what the tools add around an image is not labelled."""
        found, turned = self._nearest(mask), self._nearest(UNLABELLED - mask)
        # Of a mask turned round, what is the mask's own is turned round too; what was added, of any colour, is not.
        own = (found + turned == UNLABELLED) & np.isin(found, mask)
        return np.where(own, found, UNLABELLED).astype(np.uint8)

    def _nearest(self, mask: UInt8[np.ndarray, "_H _W"]) -> Float64[np.ndarray, "_h _w"]:
        image = with_channels(as_image(mask[..., None]), 3 if self.channels == 3 else 1)
        assert isinstance(image, Image.Image)
        return self.process.nearest(image)[0].numpy().astype(np.float64)


@dataclass(frozen=True)
class TransformersTools:
    """A transformers image processor."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processor(image, return_tensors="pt", do_normalize=False)["pixel_values"][0]

    def nearest(self, mask: Image.Image) -> Tensor:
        asked = {"do_normalize": False, "do_rescale": False, "resample": Image.Resampling.NEAREST}
        return self.processor(mask, return_tensors="pt", **asked)["pixel_values"][0]


@dataclass(frozen=True)
class TimmTools:
    """timm's transforms."""

    steps: tuple[Any, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        value: Any = image
        for step in self.steps:
            value = step(value)
        return value

    def nearest(self, mask: Image.Image) -> Tensor:
        from torchvision.transforms import InterpolationMode

        steps = tuple(copy.copy(step) for step in self.steps)
        for step in steps:
            if hasattr(step, "interpolation"):
                step.interpolation = InterpolationMode.NEAREST
        return (255 * TimmTools(steps)(mask)).round()


def processed(folder: Path, processor: Any, config: Any) -> ForeignPreprocessing:
    """The image processor without its normalisation, which is ours to do, so that raw pixels can be taken before it.

    Raises:
        InputError: it gives other channels than the model takes, or black and white are not 0 and 1 without its
            normalisation.
    """
    channels = int(getattr(config, "num_channels", 3))
    process, mode = TransformersTools(processor), "RGB" if channels == 3 else "L"
    tried, white = (process(Image.new(mode, (64, 48), colour)) for colour in ("black", "white"))
    if tried.ndim != 3 or tried.shape[0] != channels:
        raise InputError(f"{folder}: its image processor gives {tuple(tried.shape)}, {channels} channels are wanted")
    darkest, brightest = float(tried.min()), float(white.max())  # whatever it adds around an image lies between
    if max(abs(darkest), abs(brightest - 1)) > _OFF:
        raise InputError(
            f"{folder}: without its normalisation, its image processor ({type(processor).__name__}) makes "
            f"{darkest:.3g} of black and {brightest:.3g} of white, where 0 and 1 are wanted; compute the features "
            "with it yourself, and give them as .npy files"
        )
    normalised = getattr(processor, "do_normalize", False)
    mean = tuple(processor.image_mean) if normalised else (0.0,) * channels
    std = tuple(processor.image_std) if normalised else (1.0,) * channels
    return ForeignPreprocessing(
        size=(tried.shape[1], tried.shape[2]),
        channels=channels,
        mean=mean,
        std=std,
        process=process,
        text=WHOLE + str(processor.to_json_string()),
    )

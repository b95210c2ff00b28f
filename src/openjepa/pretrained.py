"""A trained encoder for somebody's own images: ``openjepa.load(path).encode(images)``."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from openjepa.data.augmentation import Preprocessing, to_unit
from openjepa.data.base import BadImage, Picture
from openjepa.data.decode import decode
from openjepa.encoder import Encoder
from openjepa.errors import InputError
from openjepa.interop import huggingface

ImageLike = str | PathLike[str] | Image.Image | np.ndarray | Tensor


class Pretrained:
    """An encoder with its preprocessing.

    Attributes:
        encoder: the network (the target encoder of a run).
        preprocessing: how an image becomes its input.
    """

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing) -> None:
        self.encoder, self.preprocessing = encoder.eval(), preprocessing

    def to(self, device: torch.device | str) -> "Pretrained":
        """Move the encoder; features come back to the CPU all the same."""
        self.encoder.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return self.encoder.table.device

    def encode(
        self, images: ImageLike | Iterable[ImageLike], *, tokens: bool = False, batch: int = 64
    ) -> Float[np.ndarray, "n *S D"]:
        """Features as float32: the average over tokens, (n, D), or every token's on its grid, (n, *grid, D).

        Args:
            images: one or many of: paths, PIL images, arrays (H W, or H W C; uint8, uint16, or float in [0, 1]),
                tensors (C H W; uint8, or float in [0, 1]); an array or tensor with one more axis in front is many.
            batch: images computed at once.

        Raises:
            InputError: an image that cannot be read; the message names it.
        """
        parts = []
        for group in _groups(_each(images), batch):
            features = self.features(torch.stack([self._fit(image) for image in group]))
            shape = (len(group), *self.encoder.config.grid.shape, -1)
            parts.append((features.view(shape) if tokens else features.mean(1)).cpu().numpy())
        if not parts:
            raise InputError("there are no images to encode")
        return np.concatenate(parts)

    def _fit(self, image: Picture) -> Shaped[Tensor, "C H W"]:
        try:
            return to_unit(self.preprocessing.fit(image))
        except BadImage as error:
            raise InputError(f"an image {error.reason}") from error

    @torch.inference_mode()
    def features(self, x: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """Every token's features of preprocessed images (uint8, or float in [0, 1], not normalised), on the device."""
        return self.encoder(self.preprocessing.normalise(x.to(self.device))).float()


def load(path: str | PathLike[str]) -> Pretrained:
    """Load a run folder, an imported checkpoint's folder, or a Hugging Face directory with an I-JEPA model.

    Raises:
        InputError: there is no encoder; the message says what was found.
    """
    folder = Path(path)
    directory = folder / "encoder" if (folder / "encoder").is_dir() else folder
    if (folder / "experiment.json").is_file() and directory is folder:
        raise InputError(
            f"the run {folder} has no encoder yet: it is written when training stops (openjepa resume {folder})"
        )
    loaded = huggingface.load(directory)
    return Pretrained(loaded.encoder, Preprocessing.from_json(loaded.preprocessing))


def _each(images: Any) -> Iterator[Any]:
    if isinstance(images, str | PathLike):
        try:
            yield decode(images, str(images))
        except BadImage as error:
            raise InputError(str(error)) from error
    elif isinstance(images, Image.Image):
        yield _picture(np.asarray(images)) if images.mode[0] in "IF" else images
    elif isinstance(images, Tensor):
        if images.ndim not in (3, 4):
            raise InputError(f"a tensor of images has the axes (n) C H W, got shape {tuple(images.shape)}")
        for one in images if images.ndim == 4 else images[None]:
            yield _picture(one.permute(1, 2, 0).cpu().numpy())
    elif isinstance(images, np.ndarray):
        if images.ndim not in (2, 3, 4):
            raise InputError(f"an array of images has the axes H W, H W C or n H W C, got shape {images.shape}")
        yield from map(_picture, images if images.ndim == 4 else [images])
    else:
        for one in images:
            yield from _each(one)


def _picture(array: np.ndarray) -> np.ndarray:
    """An array as the data room has it: H W C, uint8, uint16 or float32 in [0, 1]."""
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype.kind == "f" and array.size and 0 <= array.min() <= array.max() <= 1:
        return array.astype(np.float32)
    raise InputError(
        f"an array of {array.dtype} from {array.min()} to {array.max()} is not an image here: "
        f"give uint8, uint16, or floats from 0 to 1 that are not normalised"
    )


def _groups(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group

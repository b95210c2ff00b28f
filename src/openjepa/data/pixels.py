"""Channels and size of decoded images, Pillow's and arrays alike. Boxes are (top, left, height, width)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32, Num, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from openjepa.data.base import BadImage, Picture
from openjepa.data.decode import standard

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's

Pixels = UInt8[Tensor, "_C _H _W"] | Float32[Tensor, "_C _H _W"]


def with_channels(image: Picture, channels: int) -> Picture:
    """The image with ``channels`` channels: grey by luma, colour by repetition; transparency lies over white.

    Raises:
        BadImage: there is no fair way, as from 5 channels to 3.
    """
    if isinstance(image, Image.Image):
        image = standard(image, "image")
    elif image.shape[2] == channels:
        return image
    elif image.dtype == np.uint8 and image.shape[2] in (1, 3):
        image = as_image(image)
    if isinstance(image, np.ndarray):
        return _array_with_channels(image, channels)
    if channels not in _MODES:
        raise BadImage("image", f"has {len(image.getbands())} channels ({image.mode}), {channels} are wanted")
    mode = _MODES[channels]
    if image.mode == mode:
        return image
    if image.mode in ("LA", "RGBA") and mode in ("L", "RGB"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def as_image(image: UInt8[np.ndarray, "_H _W _C"]) -> Image.Image:
    """An 8-bit array of 1 or 3 channels as Pillow's image."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def resized(image: Picture, box: tuple[int, int, int, int], size: tuple[int, int]) -> Pixels:
    """The part of the image in ``box`` at ``size``, by antialiased bicubic interpolation.

    PyTorch's for 8 bits is as near to the exact result as Pillow's, in a fifth of its time (benchmarks/README.md).
    """
    top, left, height, width = box
    # Cut first: nothing around the box may come in.
    if isinstance(image, Image.Image):
        if image.size != (width, height):
            image = image.crop((left, top, left + width, top + height))
        if (height, width) != size and image.mode in ("LA", "RGBA"):  # colours count as far as they are seen
            image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        part = np.array(image)
        part = part if part.ndim == 3 else part[..., None]
    else:
        part = image[top : top + height, left : left + width]
    part = np.require(part, requirements="W") if part.dtype == np.uint8 else _unit_array(part)
    pixels = torch.from_numpy(part).permute(2, 0, 1)[None]
    if pixels.shape[2:] != size:
        # Of what bicubic interpolation overshoots; floats that pass white themselves keep what they have.
        most = max(1.0, float(pixels.max())) if pixels.is_floating_point() else None
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        pixels = pixels if most is None else pixels.clamp_(0, most)
    return pixels[0].contiguous()


def nearest(
    mask: UInt8[np.ndarray, "_H _W"], box: tuple[int, int, int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "_h _w"]:
    """The part of a mask in ``box`` (top, left, height, width) at ``size``, each pixel the nearest one's class."""
    top, left, height, width = box
    rows = top + ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    columns = left + ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    return mask[rows[:, None], columns]


def to_unit(images: Num[Tensor, "*B C H W"]) -> Float32[Tensor, "*B C H W"]:
    """8-bit pixels in 0..1 as float32; floats are taken to be there already."""
    return images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)


def alike(images: Sequence[Num[Tensor, "*B _C _H _W"]]) -> list[Num[Tensor, "*B _C _H _W"]]:
    """The images (or batches of them) in one precision: as they are, or all as floats where one is not of 8 bits."""
    if all(image.dtype == torch.uint8 for image in images):
        return list(images)
    return [to_unit(image) for image in images]


def _array_with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    has = image.shape[2]
    if has == 1 and channels == 3:
        return np.repeat(image, 3, 2)
    if has == 3 and channels == 1:
        return (_unit_array(image) @ np.array(_LUMA, np.float32))[..., None]
    raise BadImage("image", f"has {has} channels, {channels} are wanted")


def _unit_array(image: np.ndarray) -> Float32[np.ndarray, "H W C"]:
    """An array's pixels as float32 in 0..1."""
    if image.dtype == np.float32:
        return np.ascontiguousarray(image)
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def unit_extremes(image: Picture) -> tuple[list[float], list[float]]:
    """The lowest and the highest value of each channel, in units where white is 1."""
    array = np.asarray(image)
    array = array if array.ndim == 3 else array[..., None]
    white = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    # Channel by channel: over the first two axes at once NumPy takes twenty times as long.
    planes = [array[..., channel] for channel in range(array.shape[2])]
    return [float(plane.min() / white) for plane in planes], [float(plane.max() / white) for plane in planes]


def extent_of(image: Picture) -> tuple[int, int]:
    """Height and width in pixels."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[0], image.shape[1])


@lru_cache(maxsize=4096)
def resize_matrix(start: int, extent: int, length: int, out: int) -> Float32[Tensor, "out length"]:
    """The matrix that resizes ``extent`` places from ``start`` of a line of ``length``, as Pillow's bicubic does.

    Each output is a mean of inputs weighted by Keys' cubic (1981, a = -1/2), stretched where the line shrinks.
    """
    scale = extent / out
    centre = (np.arange(out) + 0.5) * scale
    x = np.abs(np.arange(extent) + 0.5 - centre[:, None]) / max(scale, 1.0)
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    matrix = np.zeros((out, length), np.float32)
    matrix[:, start : start + extent] = weights / weights.sum(1, keepdims=True)
    return torch.from_numpy(matrix)

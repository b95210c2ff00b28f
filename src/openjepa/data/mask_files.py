"""One file of class numbers, read without loss, and refused by name where it is no mask."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64, Shaped
from PIL import Image

from openjepa.data.arrays import File
from openjepa.data.base import BadImage
from openjepa.data.opening import opened, pages_of, upright


class NotAMask(BadImage):
    """A file that can be read, but not as the class numbers that it was made of."""


def read_mask(path: Path) -> Int64[np.ndarray, "H W"] | Bool[np.ndarray, "H W"]:
    """The numbers of a mask: palette indices, grey levels, or colours packed into one number where it has colours.

    Masks of 1 bit are given as such; one with an EXIF orientation of its own is turned by it.

    Raises:
        BadImage: it cannot be read.
        NotAMask: it was saved with loss, or holds fractions, several pages, or transparency that differs by place.
    """
    with opened(path, str(path)) as file:
        if path.suffix.lower() == ".npy":
            array = np.load(file, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise NotAMask(
                    str(path), "is an archive of arrays (.npz): save the one that is the mask with numpy.save"
                )
        else:
            with Image.open(file) as image:
                if (flaw := _flaw(image, file)) is not None:
                    raise NotAMask(str(path), flaw)
                image = upright(image)
                plain = image.mode in ("1", "L", "P", "I", "F") or image.mode.startswith("I;")
                array = np.asarray(image if plain else image.convert("RGB"))
        array = array if array.dtype == np.bool_ else _whole(array, path)
        if array.ndim == 3 and array.shape[2] == 3:
            grey = bool((array == array[..., :1]).all())
            array = array[..., 0] if grey else array @ np.array([1 << 16, 1 << 8, 1])
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim != 2:
            raise ValueError(f"a mask has two axes, this one has the shape {array.shape}")
        return array


def numbers(mask: Int64[np.ndarray, "H W"] | Bool[np.ndarray, "H W"], one: int = 1) -> Int64[np.ndarray, "H W"]:
    """A mask's numbers, of which 1 in a mask of 1 bit stands for ``one``."""
    return mask * np.int64(one) if mask.dtype == np.bool_ else mask


def _whole(array: Shaped[np.ndarray, "..."], path: Path) -> Int64[np.ndarray, "..."]:
    """An array's numbers, if they are whole ones."""
    if array.dtype.kind not in "iuf":
        raise NotAMask(str(path), f"holds numbers of type {array.dtype}; a mask holds whole ones, a class each")
    if array.dtype.kind == "f":
        broken = array[~np.isfinite(array) | (array != np.floor(array))]
        if broken.size:
            raise NotAMask(
                str(path),
                f"holds {broken[0]:g} ({broken.size:,} of its {array.size:,} values are no whole numbers), and a mask "
                "holds a class's number in each pixel: round probabilities to classes first",
            )
    return array.astype(np.int64)


def _flaw(image: Image.Image, file: File) -> str | None:
    """Why an opened image does not hold one mask as it was made; None where it does, by all that can be told."""
    if (lossy := _lossy(image, file)) is not None:
        return (
            f"is {lossy}, which does not hold masks as they were made (it blends the numbers of neighbouring classes): "
            "save masks as PNG"
        )
    if (pages := pages_of(image)) > 1:
        return f"has {pages} pages, and which of them is the mask cannot be told: save that one alone"
    if image.getbands()[-1] in ("A", "a"):
        pixels = np.unique(np.asarray(image.convert("RGBA")).view("<u4"))  # transparency is in the highest byte
        alpha = pixels >> 24
        if len(np.unique(pixels & 0xFFFFFF)) < len(pixels):
            return (
                f"has transparency that differs where its colours do not (from {alpha.min()} to {alpha.max()}), and "
                "numbers are read from colours alone: save the mask without transparency, or that as a grey PNG"
            )
    return None


def _lossy(image: Image.Image, file: File) -> str | None:
    """What an opened image is saved in, if that is known to be lossy: of JPEG 2000 it cannot be told."""
    if image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        return "a lossy JPEG"
    if image.format == "AVIF":
        return "an AVIF, lossy as a rule"
    if image.format != "WEBP":
        return None
    file.seek(12)
    while len(head := file.read(8)) == 8 and head[:4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(head[4:], "little")
        file.seek(size + size % 2, os.SEEK_CUR)
    return "a lossy WebP" if head[:4] == b"VP8 " else None

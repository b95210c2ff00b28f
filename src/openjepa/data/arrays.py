"""Images that Pillow cannot hold: .npy files, TIFF with many channels, and numbers of any type."""

import functools
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from openjepa.data.base import BadImage, Picture
from openjepa.errors import InputError

if TYPE_CHECKING:
    from tifffile import TiffFile

File = io.BufferedReader | io.BytesIO
# What white is, given an image's highest value and whether it is a float.
White = Callable[[float, bool], float]
FIRST_PAGE = "several pages, of which only the first is read"
# Floats up to here have white 1, which reflectance may pass.
_REFLECTANCE = 2.0
# A TIFF's flaws become a BadImage or don't matter; without a handler tifffile would print them.
_UNHEARD = logging.NullHandler()


@functools.cache
def allow_pixels() -> None:
    """Move Pillow's guard against decompression bombs, in this process, to where OPENJEPA_MAX_PIXELS has it."""
    chosen = os.environ.get("OPENJEPA_MAX_PIXELS")
    if chosen is None:
        return
    if not chosen.isdecimal() or not int(chosen):
        raise InputError(f"OPENJEPA_MAX_PIXELS must be a whole number of pixels above 0, got {chosen!r}")
    Image.MAX_IMAGE_PIXELS = int(chosen)


def read_npy(file: File, reference: str) -> Shaped[np.ndarray, "H W C"]:
    """The array of a .npy file, as an image.

    Raises:
        BadImage: its shape or type is not an image's.
    """
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(file)
    if len(shape) not in (2, 3) or 0 in shape:
        raise BadImage(reference, f"holds an array of shape {shape}; an image is (height, width, channels)")
    if len(shape) == 3 and _channels_first(shape):
        raise BadImage(
            reference,
            f"holds an array of shape {shape}, channels first it seems; it should be (height, width, channels)",
        )
    if dtype.hasobject:
        raise BadImage(reference, "holds Python objects, not numbers")
    refuse_bomb(shape[1], shape[0], reference)
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    return array if array.ndim == 3 else array[..., None]


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the axes are (channels, height, width) by all appearance: few of the first, and many of the last where
    channels would be; (9, 9, 200) is a small image with many channels."""
    first, rows, columns = shape
    if min(rows, columns) <= max(first, 4):
        return False
    return first <= 4 or rows == columns or (first <= 32 and 2 * first <= min(rows, columns))


@contextmanager
def open_tiff(file: File) -> "Iterator[TiffFile]":
    """A TIFF from its first byte.

    Raises:
        ValueError: tifffile cannot read it.
    """
    import tifffile

    logging.getLogger("tifffile").addHandler(_UNHEARD)
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as tiff:
            yield tiff
    except tifffile.TiffFileError as error:  # no ValueError before tifffile 2025.12
        raise ValueError(str(error)) from error


def first_image(tiff: "TiffFile", reference: str) -> Shaped[np.ndarray, "H W C"]:
    """The first image of a TIFF with all its channels, by tifffile's account of the axes.

    Raises:
        BadImage: it has too many pixels.
    """
    series = tiff.series[0]
    axes, shape = series.axes, series.shape
    channel = _channel_axis(axes, shape)
    extent = dict(zip(axes, shape, strict=True))
    refuse_bomb(extent.get("X", shape[-1]), extent.get("Y", shape[0]), reference)
    array = series.asarray()
    if channel is None:
        return array.reshape(-1, *array.shape[-2:])[0][..., None]
    array = np.moveaxis(array, channel, -1)
    # Other leading axes (time, depth, a sequence) count as frames: the first one is the image.
    return array.reshape(-1, *array.shape[-3:])[0]


def pages_as_read(tiff: "TiffFile") -> str:
    """What :func:`first_image` makes of the pages of a TIFF, in words; "" where it has one."""
    series = tiff.series[0]
    channel = _channel_axis(series.axes, series.shape)
    others = [extent for axis, extent in enumerate(series.shape) if axis != channel][:-2]
    if max(others, default=1) > 1:
        return FIRST_PAGE
    if channel is None or series.axes[channel] == "S":
        return ""
    return "pages are read as rows, and their width as channels" if channel else "pages are read as channels"


def _channel_axis(axes: str, shape: tuple[int, ...]) -> int | None:
    """Which axis holds the channels: the one that is named so, or the pages of a file that does not name its axes.

    Where such pages are a few pixels wide, or as many as they are high and less wide, they are the rows of an array
    (height, width, channels) that was saved so.
    """
    for name in "SC":
        if name in axes:
            return axes.index(name)
    if len(shape) == 3 and "Q" in axes:
        rows_as_pages = shape[2] <= 32 and 2 * shape[2] <= min(shape[:2])
        return 2 if rows_as_pages or shape[0] == shape[1] > shape[2] else 0
    return None


def own_white(highest: float, floats: bool) -> float:
    """What white is in an image of that highest value: the smallest of 1 (floats only), 255 and 65535 that holds it.

    Floats up to 2 have white 1, which reflectance may pass.
    """
    return 1.0 if floats and highest <= _REFLECTANCE else 255.0 if highest <= 255 else 65535.0


def as_picture(array: Shaped[np.ndarray, "H W C"], reference: str, white: White = own_white) -> Picture:
    """An array of any number type as uint8, uint16 or float32 in units where white is 1 (at most 2).

    White is the dtype's largest value for uint8 and uint16, and 65535 for int16. Other types don't say what white is:
    ``white`` does, from the image's highest value and whether it is a float.

    Raises:
        BadImage: its values are not intensities, or are of another scale than ``white``.
    """
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if array.dtype.kind not in "iuf":
        raise BadImage(reference, f"holds numbers of type {array.dtype}, which is not an image's")
    floats, low, high = array.dtype.kind == "f", float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadImage(reference, _not_finite(array))
    if not (low >= 0 and high <= 65535):
        raise BadImage(reference, f"has values from {low:g} to {high:g}; scale them to 0..1, 0..255 or 0..65535")
    if array.dtype.kind == "i" and array.dtype.itemsize == 2:
        return np.ascontiguousarray(array, np.uint16)
    limit = white(high, floats)
    if own_white(high, floats) > limit:
        raise BadImage(
            reference,
            f"has values up to {high:g} where other images of these data end at {limit:g}; save them all as uint8 or "
            "uint16",
        )
    if floats:
        return np.ascontiguousarray(array / limit, np.float32)
    return np.ascontiguousarray(array, np.uint8 if limit == 255 else np.uint16)


def _not_finite(array: Shaped[np.ndarray, "H W C"]) -> str:
    """What an array holds beside numbers, and what to do."""
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    held = [
        f"{name} ({count:,} of {array.size:,} values)"
        for name, count in (("NaN", nan), ("infinity", infinite))
        if count
    ]
    return f"holds {' and '.join(held)}: fill them with numbers, or leave the image out"


def refuse_bomb(width: int, height: int, reference: str) -> None:
    """Raise BadImage for more pixels than Pillow, or OPENJEPA_MAX_PIXELS, takes for a decompression bomb."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise BadImage(
            reference,
            f"has {width} x {height} pixels, above the limit of {limit:,} that guards against decompression bombs; to "
            f"allow it, set OPENJEPA_MAX_PIXELS={width * height}",
        )

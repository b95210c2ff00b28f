"""From a file's bytes to pixels: every format and mode that Pillow, NumPy and tifffile read, and nothing half-read.

8-bit images come as Pillow images (modes L, LA, RGB, RGBA) or, of a fast decoder, as arrays H W C of 1 or 3 channels;
16-bit, float and many-channel ones as arrays. An array's transparency, if the file names one, lies over white already.
"""

import importlib.util
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from openjepa.data.arrays import File, White, as_picture, own_white, read_npy, refuse_bomb
from openjepa.data.base import Picture
from openjepa.data.deep import WHITE_IS_ZERO, as_seen, by_tifffile, packing_of, sixteen_bits
from openjepa.data.opening import exif_orientation, looked_into, tags_of, target_mode, upright

_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None  # not required


def decode(
    data: str | os.PathLike[str] | bytes | memoryview,
    reference: str,
    at_least: tuple[int, int] | None = None,
    white: White = own_white,
) -> Picture:
    """The pixels of an image file (a path, or its bytes), upright; the first frame or page of several.

    Only an EXIF orientation that stands before the pixels counts: one in a PNG's chunk after them, which a header does
    not show, is ignored here as there. ``white`` as :func:`as_picture` has it.

    Raises:
        BadImage: it is not an image, is damaged or truncated, or has more pixels than Pillow's limit.
    """
    with looked_into(data, reference) as (file, numpy, image):
        if numpy:
            return as_picture(read_npy(file, reference), reference, white)
        if image is None:
            return by_tifffile(file, reference, white)
        refuse_bomb(*image.size, reference)
        orientation = exif_orientation(image)
        if image.format in ("JPEG", "MPO"):  # MPO: a JPEG with more pictures behind it, as many cameras write
            if at_least is not None:
                image.draft(None, at_least if orientation >= 5 else (at_least[1], at_least[0]))
            if orientation == 1 and (pixels := _by_simplejpeg(file, image)) is not None:
                return pixels
        if (packing := packing_of(image)) is not None:
            return sixteen_bits(file, *packing)
        picture = standard(upright(image), reference, white)
        if isinstance(picture, np.ndarray) and tags_of(image).get(262) == WHITE_IS_ZERO:
            return as_seen(picture, WHITE_IS_ZERO)  # of 8 bits Pillow does it itself
        return picture


def _by_simplejpeg(file: File, image: Image.Image) -> UInt8[np.ndarray, "_H _W _C"] | None:
    """What Pillow would make of a JPEG that it has opened, in less time; None where the file is Pillow's to judge."""
    if not _SIMPLEJPEG or image.mode not in ("L", "RGB"):
        return None
    import simplejpeg

    colours, (width, height) = "GRAY" if image.mode == "L" else "RGB", image.size
    file.seek(0)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), colours, min_height=height, min_width=width, min_factor=1)
    except ValueError:  # damaged, if only a little
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def standard(image: Image.Image, reference: str, white: White = own_white) -> Picture:
    """An image of any Pillow mode in one that the rest of the library knows, or as an array if it has more than 8 bits.

    Raises:
        BadImage: its values are not intensities.
    """
    if image.mode.startswith("I"):
        # Pillow's 32-bit mode "I" stands for 16 bits here, however dark the image.
        array = np.asarray(image)[..., None]
        as_picture(array, reference)
        return array.astype(np.uint16)
    if image.mode == "F":
        return as_picture(np.asarray(image)[..., None], reference, white)
    mode = target_mode(image)
    return image if mode == image.mode else image.convert(mode)

"""Samples that Pillow does not keep whole: 16-bit colours, and TIFFs of many channels, planes or pages."""

import io
import sys
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8, UInt16
from PIL import Image, ImageFile

from openjepa.data.arrays import File, White, as_picture, first_image, open_tiff
from openjepa.data.opening import ORIENTATION, turned, upright

# TIFF's numbers: what a sample means (PhotometricInterpretation), and what one beyond the colours is (ExtraSamples).
WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
NO_ALPHA, PREMULTIPLIED, ALPHA = 0, 1, 2
# Colours of which Pillow keeps 8 bits of 16, by its names for how they are packed.
SIXTEEN_BITS = {
    "RGB": (_RGB, NO_ALPHA),
    "RGBA": (_RGB, ALPHA),
    "RGBa": (_RGB, PREMULTIPLIED),
    "CMYK": (_CMYK, NO_ALPHA),
    "LA": (_BLACK_IS_ZERO, ALPHA),
}


def packing_of(image: Image.Image) -> tuple[str, str] | None:
    """How the samples of a 16-bit colour image are packed: Pillow's names for the colours and for the order of bytes
    (B, L or the machine's own, N); None for images that Pillow reads whole."""
    if image.format not in ("PNG", "TIFF") or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return None
    packed = image.tile[0][3]
    colours, _, bits = str(packed[0] if isinstance(packed, tuple) else packed).partition(";")
    return (colours, bits[2:]) if bits.startswith("16") and colours in SIXTEEN_BITS else None


def sixteen_bits(file: File, colours: str, order: str) -> UInt16[np.ndarray, "_H _W _C"]:
    """A 16-bit colour image that Pillow can open; it keeps the high byte of each sample, and the low one if told that
    the bytes are in the other order."""
    file.seek(0)
    data = file.read()  # libtiff moves an open file's position unseen
    if colours == "LA":  # as many bytes as 8-bit RGBA, which are kept as they are
        array = _unpacked(data, "RGBA").view(">u2").astype(np.uint16)
    else:
        plain = colours.upper()  # premultiplied colours as they are stored
        little = order == "L" or (order == "N" and sys.byteorder == "little")
        high, low = (_unpacked(data, f"{plain};16{name}") for name in ("LB" if little else "BL"))
        array = (high.astype(np.uint16) << 8) | low
    return as_seen(array, *SIXTEEN_BITS[colours])


def _unpacked(data: bytes, rawmode: str) -> UInt8[np.ndarray, "_H _W _C"]:
    """The bytes that Pillow keeps, upright, if it takes the samples to be packed as ``rawmode`` says."""

    def repacked(tile: Any) -> Any:
        settings = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
        parts = (*tile[:3], settings)
        return type(tile)(*parts) if hasattr(tile, "_fields") else parts  # plain tuples before Pillow 11

    with Image.open(io.BytesIO(data)) as image:
        image.tile = [repacked(tile) for tile in image.tile]
        return np.asarray(upright(image))


def by_tifffile(file: File, reference: str, white: White) -> Num[np.ndarray, "_H _W _C"]:
    """A TIFF that is none of Pillow's, upright and as it is to be seen."""
    with open_tiff(file) as tiff:
        array = np.asarray(as_picture(first_image(tiff, reference), reference, white))
        page: Any = tiff.pages.first
        alpha = alpha_of(page) if array.shape[2] == page.samplesperpixel else NO_ALPHA
        photometric, bits, orientation = int(page.photometric), page.bitspersample, tiff_orientation(tiff)
    return turned(as_seen(array, photometric, alpha, bits), orientation)


def alpha_of(page: Any) -> int:
    """What the last sample of a TIFF's page is said to be, by TIFF's number."""
    photometric, extra, samples = int(page.photometric), page.extrasamples, page.samplesperpixel
    if (photometric, samples) not in ((WHITE_IS_ZERO, 2), (_BLACK_IS_ZERO, 2), (_RGB, 4)):
        return NO_ALPHA
    return int(extra[0]) if extra else ALPHA if samples == 4 else NO_ALPHA


def tiff_orientation(tiff: Any) -> int:
    return int(tiff.pages.first.tags.valueof(ORIENTATION, default=1))


def as_seen(
    array: Num[np.ndarray, "_H _W _C"], photometric: int, alpha: int = NO_ALPHA, bits: int = 16
) -> Num[np.ndarray, "_H _W _c"]:
    """Samples as light: white is the highest value, transparency lies over white, and inks are colours."""
    inks = photometric == _CMYK and array.shape[2] == 4
    if alpha not in (PREMULTIPLIED, ALPHA) and photometric != WHITE_IS_ZERO and not inks:
        return array
    whole = array.dtype.kind == "u"
    top = np.float32(min(np.iinfo(array.dtype).max, 2 ** max(bits, 8) - 1) if whole else 1)
    light = array.astype(np.float32)
    if alpha in (PREMULTIPLIED, ALPHA):
        light, share = light[..., :-1], light[..., -1:] / top
        light = light if alpha == PREMULTIPLIED else light * share
        light = light if photometric == WHITE_IS_ZERO else light + (1 - share) * top
    if inks or photometric == WHITE_IS_ZERO:
        light = top - light
    if inks:
        light = light[..., :3] * (light[..., 3:] / top)
    light = light.clip(0, top)
    return np.rint(light).astype(array.dtype) if whole else light

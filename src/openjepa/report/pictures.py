"""Pixels of the report: masks painted on images, feature maps as colours, PNG as data URIs."""

import base64
import io

import numpy as np
from jaxtyping import Bool, Float64, Integer, Num, UInt8

# Told apart by people with any common colour vision, on photographs and on grey: after Okabe and Ito (2008).
TARGET_COLOURS = ((255, 159, 28), (64, 190, 255), (255, 92, 168), (240, 228, 66), (0, 200, 140), (186, 130, 255))
VEIL = (24, 26, 32)
_DIMMED = 0.22  # what is left of a pixel that nobody sees or predicts
_TINT = 0.28
# Of the features' length: in some fifty runs that had not collapsed the widest component ranged over 0.5 to 1.8, in one
# of RankMe 1.35 over 0.1.
LEAST_RANGE = 0.5


def as_rgb(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    """The first three channels as colour, or the first one as grey where there are fewer than three."""
    return image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)


def cell_size(grid: tuple[int, int], patch: tuple[int, int], *, longest: int = 224) -> tuple[int, int]:
    """Pixels (rows, columns) that draw one token, so that the picture's longer side has about ``longest`` pixels.

    Small images grow by a whole factor: every one of their pixels stays a square.
    """
    scale = longest / max(grid[0] * patch[0], grid[1] * patch[1])
    scale = float(int(scale)) if scale >= 1 else scale
    return max(1, round(patch[0] * scale)), max(1, round(patch[1] * scale))


def resized(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """The image at ``size`` (rows, columns): nearest pixel where it grows, averaged where it shrinks."""
    from PIL import Image

    grows = size[0] >= image.shape[0] and size[1] >= image.shape[1]
    method = Image.Resampling.NEAREST if grows else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), method))


def paint_masks(
    image: UInt8[np.ndarray, "H W 3"],
    grid: tuple[int, int],
    context: Integer[np.ndarray, "K"],
    targets: Integer[np.ndarray, "M T"],
    *,
    line: int = 2,
) -> UInt8[np.ndarray, "H W 3"]:
    """Context tokens as they are, each target block tinted and outlined (inside, ``line`` pixels), all else dimmed.

    The image's sides are whole multiples of ``grid``. Later blocks are painted over earlier ones.
    """
    cell = (image.shape[0] // grid[0], image.shape[1] // grid[1])
    seen = _pixels_of(context, grid, cell)
    painted = _blend(image, VEIL, 1 - _DIMMED)
    blocks = [
        (_pixels_of(block, grid, cell), TARGET_COLOURS[i % len(TARGET_COLOURS)]) for i, block in enumerate(targets)
    ]
    for block, colour in blocks:
        painted[block] = _blend(_blend(image, VEIL, 1 - 2 * _DIMMED), colour, _TINT)[block]
    painted[seen] = image[seen]
    for block, colour in blocks:
        painted[block & ~_eroded(block, line)] = colour
    return painted


def _pixels_of(
    tokens: Integer[np.ndarray, "K"], grid: tuple[int, int], cell: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    chosen = np.zeros(grid[0] * grid[1], bool)
    chosen[tokens] = True
    return np.repeat(np.repeat(chosen.reshape(grid), cell[0], axis=0), cell[1], axis=1)


def _eroded(region: Bool[np.ndarray, "H W"], width: int) -> Bool[np.ndarray, "H W"]:
    """The pixels whose neighbours up to ``width`` away are all in the region; beyond the image counts as outside."""
    height, breadth = region.shape
    padded = np.pad(region, width)
    shifts = range(2 * width + 1)
    rows = np.logical_and.reduce([padded[shift : shift + height] for shift in shifts])
    return np.logical_and.reduce([rows[:, shift : shift + breadth] for shift in shifts])


def _blend(image: UInt8[np.ndarray, "H W 3"], colour: tuple[int, int, int], share: float) -> UInt8[np.ndarray, "H W 3"]:
    return np.rint(image * (1 - share) + np.asarray(colour) * share).astype(np.uint8)


def principal_components(
    features: Num[np.ndarray, "n N D"], components: int = 3
) -> tuple[Float64[np.ndarray, "n N P"], Float64[np.ndarray, "P"]]:
    """Projection of all tokens on their common principal components, and the share of variance of each.

    Each axis points to where its largest loading is positive, so that equal features give equal colours. Components
    beyond the width or the rank of the features are zero.
    """
    n, tokens, width = features.shape
    rows = features.reshape(-1, width).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    variances, axes = np.linalg.eigh(rows.T @ rows)
    kept = min(components, width)
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1][:, :kept]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    total = variances.sum()
    projected, shares = np.zeros((len(rows), components)), np.zeros(components)
    projected[:, :kept] = rows @ (axes * np.where(largest < 0, -1, 1))
    if total > 0:
        shares[:kept] = variances[:kept] / total
    projected[:, shares < 1e-12] = 0  # rounding noise of a rank that is exhausted would be blown up to full colour
    return projected.reshape(n, tokens, components), shares


def feature_length(features: Num[np.ndarray, "n N D"]) -> float:
    """The mean Euclidean length of a token's features."""
    return float(np.linalg.norm(features.astype(np.float64), axis=-1).mean())


def feature_colours(projected: Float64[np.ndarray, "n N 3"], length: float) -> UInt8[np.ndarray, "n N 3"]:
    """Components as red, green and blue around middle grey, all three and all pictures on one scale.

    From no colour to full colour it is the widest component's range, or a share of the features' own ``length``
    where they differ by less: features that are nearly alike stay grey, and those of one direction have one hue.
    """
    low, high = projected.min(axis=(0, 1)), projected.max(axis=(0, 1))
    whole = max(float((high - low).max()), LEAST_RANGE * length) or 1.0
    return np.rint(255 * (0.5 + (projected - (low + high) / 2) / whole)).astype(np.uint8)


def upsampled(
    tokens: UInt8[np.ndarray, "N 3"], grid: tuple[int, int], cell: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """One flat rectangle of ``cell`` pixels for each token of the grid."""
    return np.repeat(np.repeat(tokens.reshape(*grid, 3), cell[0], axis=0), cell[1], axis=1)


def png_uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """The image as a ``data:`` URI, so that the page needs no other file. Few colours are stored as a palette."""
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.getcolors(256) is not None:
        picture = picture.quantize(256)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

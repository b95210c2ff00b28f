"""Look at a data set before training: sizes, channels, and the mean and standard deviation of its pixels."""

import contextlib
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from openjepa import draws
from openjepa.data.augmentation import Preprocessing, to_unit
from openjepa.data.base import BadImage, Header, Source
from openjepa.data.pixels import unit_extremes, with_channels
from openjepa.errors import InputError

# The share of images that may lie the other way before the input is square, and how much longer a side then is.
_OTHER_WAY = 0.1
_LONGER = 1.25
# The most images whose remarks are asked for, since that reads the list of a file's pages.
_REMARKED = 200


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a sample of the images looks like; sizes are (height, width) in pixels.

    Attributes:
        images: images in the source.
        looked_at: images in the sample.
        smallest: the smallest height and the smallest width.
        median: the median height and the median width.
        typical: the size that a recipe is fitted to: the median, or a square of the median short side where more than
            a tenth of the images lie the other way (an upright input would lose much of every lying image).
        largest: the largest height and the largest width.
        pixels: the mean number of pixels.
        tiniest: where the image with the shortest side is, and its size.
        common: the most frequent sizes with how often they occur, most frequent first.
        modes: how often each kind of image occurs.
        channels: the natural number of channels (alpha is not one: transparent images lie over white).
        bits: the most bits per channel.
        remarked: images of the sample whose remarks were asked for.
        remarks: how many of these have each remark (:meth:`Source.remarks`), most frequent first.
        bad: images of the sample whose header cannot be read.
    """

    images: int
    looked_at: int
    smallest: tuple[int, int]
    median: tuple[int, int]
    typical: tuple[int, int]
    largest: tuple[int, int]
    pixels: float
    tiniest: tuple[str, tuple[int, int]]
    common: tuple[tuple[tuple[int, int], int], ...]
    modes: dict[str, int]
    channels: int
    bits: int
    remarked: int
    remarks: dict[str, int]
    bad: tuple[BadImage, ...]

    @property
    def sizes(self) -> str:
        """The sizes in a few words, as 28x28 or 75x100 to 500x375 (height first)."""
        smallest, largest = ("x".join(map(str, size)) for size in (self.smallest, self.largest))
        return smallest if smallest == largest else f"{smallest} to {largest}"


def survey(source: Source, limit: int = 2000, seed: int = 0) -> Survey:
    """Look at the headers of up to ``limit`` images, chosen by ``seed``.

    Raises:
        InputError: none of them can be read.
    """
    headers: list[Header] = []
    places: list[int] = []
    bad: list[BadImage] = []
    for index in _sample(source, limit, seed):
        try:
            headers.append(source.header(index))
            places.append(index)
        except BadImage as error:
            bad.append(error)
    if not headers:
        raise InputError(_none_readable(source, bad))
    heights, widths = (np.array([header[axis] for header in headers]) for axis in (0, 1))
    median = int(np.median(heights)), int(np.median(widths))
    tiniest = int(np.minimum(heights, widths).argmin())
    remarked = places[:: -(-len(places) // _REMARKED)]
    return Survey(
        images=len(source),
        looked_at=len(headers) + len(bad),
        smallest=(int(heights.min()), int(widths.min())),
        median=median,
        typical=_typical(median, heights, widths),
        largest=(int(heights.max()), int(widths.max())),
        pixels=float((heights.astype(np.float64) * widths).mean()),
        tiniest=(source.reference(places[tiniest]), (headers[tiniest].height, headers[tiniest].width)),
        common=tuple(Counter((header.height, header.width) for header in headers).most_common(5)),
        modes=dict(Counter(header.mode for header in headers).most_common()),
        channels=_natural_channels(headers),
        bits=max(header.bits for header in headers),
        remarked=len(remarked),
        remarks=_remarks(source, remarked),
        bad=tuple(bad),
    )


def _remarks(source: Source, indices: list[int]) -> dict[str, int]:
    found = Counter[str]()
    for index in indices:
        with contextlib.suppress(BadImage):  # of a later page; reading tells whether it matters
            found.update(source.remarks(index))
    return dict(found.most_common())


def _typical(
    median: tuple[int, int], heights: Int64[np.ndarray, "n"], widths: Int64[np.ndarray, "n"]
) -> tuple[int, int]:
    """The median size, or a square where images lie both ways."""
    if min((_LONGER * heights < widths).mean(), (heights > _LONGER * widths).mean()) <= _OTHER_WAY:
        return median
    short = int(np.median(np.minimum(heights, widths)))
    return short, short


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How bright the pixels of a sample of the images are, in units where white is 1.

    Attributes:
        mean: of every channel.
        std: the standard deviation of every channel; 1 for one that is constant.
        low: the lowest value of all.
        high: the highest value of all.
        looked_at: images in the sample.
        flat: where the images are that hold a single value in each channel.
        bad: images of the sample that cannot be read, or not with that number of channels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float
    high: float
    looked_at: int
    flat: tuple[str, ...]
    bad: tuple[BadImage, ...]


def levels(source: Source, size: tuple[int, int], channels: int, limit: int = 1000, seed: int = 0) -> Levels:
    """Read the pixels of up to ``limit`` images at ``size``, of those that :func:`survey` looks at with that ``seed``.

    Raises:
        InputError: none of the images can be read with that number of channels.
    """
    fit = Preprocessing(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels).fit
    sample = _sample(source, limit, seed)
    count, bad, flat, low, high = 0, list[BadImage](), list[str](), math.inf, -math.inf
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for index in sample:
        try:
            picture = with_channels(source.read(index, at_least=size), channels)
            pixels = to_unit(fit(picture)).to(torch.float64)
        except BadImage as error:
            bad.append(BadImage(source.reference(index), error.reason))
            continue
        darkest, brightest = unit_extremes(picture)
        low, high = min(low, min(darkest)), max(high, max(brightest))
        if darkest == brightest:
            flat.append(source.reference(index))
        count += size[0] * size[1]
        total += pixels.sum((1, 2))
        squares += pixels.square().sum((1, 2))
    if count == 0:
        raise InputError(_none_readable(source, bad))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return Levels(
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        low=low,
        high=high,
        looked_at=len(sample),
        flat=tuple(flat),
        bad=tuple(bad),
    )


def _sample(source: Source, limit: int, seed: int) -> list[int]:
    """Up to ``limit`` image numbers, in rising order so that files are read in theirs."""
    if len(source) == 0:
        raise InputError(f"{source.name} holds no images")
    return sorted(draws.permutation(len(source), "survey", seed)[:limit].tolist())


def _natural_channels(headers: list[Header]) -> int:
    """Colour if any image has it, else grey; for arrays with other numbers of channels the most frequent number."""
    counts = Counter(_without_alpha(header) for header in headers)
    channels = counts.most_common(1)[0][0]
    return 3 if channels == 1 and 3 in counts else channels


def _without_alpha(header: Header) -> int:
    return {"LA": 1, "La": 1, "PA": 3, "RGBA": 3, "P": 3, "CMYK": 3}.get(header.mode, header.channels)


def _none_readable(source: Source, bad: list[BadImage]) -> str:
    return f"none of the {len(bad)} images looked at in {source.name} can be used; the first: {bad[0]}"

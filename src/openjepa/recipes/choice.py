"""Which recipe fits the images and the machine, and why, in a sentence."""

import math
from collections.abc import Collection
from dataclasses import replace

from openjepa.errors import InputError
from openjepa.experiment import Experiment, Method
from openjepa.recipes import published
from openjepa.recipes.baselines import baseline
from openjepa.recipes.small import small
from openjepa.recipes.standard import standard

NAMES = ("auto", "small", "standard", *published.NAMES)
# Below this many pixels on the short side an image is used at its own size.
_NATIVE_BELOW = 100
# Images of fewer pixels on the short side are enlarged to so many: 2x2 px are the smallest patches.
_FEWEST_PIXELS = 16
# Of images much longer than high a part is taken, where the whole would be more tokens than this: 32 times 32 of them.
_MOST_TOKENS = 1024


def choose(
    name: str,
    *,
    method: Method,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    images: int,
    device: str,
    wanted: tuple[int, int] | None = None,
    median: tuple[int, int] | None = None,
) -> tuple[Experiment, str]:
    """The recipe ``name`` (``auto`` chooses) fitted to the data, and the reason.

    Args:
        method: what is predicted from what; the baselines bring their own decoder and optimiser settings.
        size: typical height and width of the images, in pixels.
        mean, std: of each channel, in [0, 1] units.
        images: number of images.
        device: ``cpu`` or ``cuda``.
        wanted: height and width that the user asked for.
        median: median height and width of the images, where that is not their typical size.

    Raises:
        InputError: no such recipe, or images that it cannot take.
    """
    if name in published.NAMES:
        refuse_published(name, method)
        return _published(name, wanted, mean, std), f"{name} was asked for: the published settings, flaws and all"
    if name not in NAMES:
        raise InputError(f"there is no recipe {name!r}; choose from {', '.join(NAMES)}")
    asked = name != "auto"
    if not asked:
        name = "standard" if device == "cuda" and min(wanted or size) >= _NATIVE_BELOW else "small"
    tokens = 14.0 if name == "standard" else _few_tokens(min(wanted or size), len(mean))
    about, side = median or size, 224 if name == "standard" else 128
    signal, patch, fitted = fit(size, wanted, about=about, side=side, tokens=tokens)
    if about != size and wanted is None:
        fitted += ", square because some lie and some stand"
    make = standard if name == "standard" else small
    recipe = baseline(make(signal=signal, patch=patch, mean=mean, std=std), method)
    batch = min(recipe.training.batch, max(1, images // 4))
    experiment = scaled(replace(recipe, training=replace(recipe.training, batch=batch)), recipe)
    reason = "it was asked for" if asked else (
        "a GPU and images large enough for 14x14 tokens" if name == "standard"
        else "small images" if min(wanted or size) < _NATIVE_BELOW else "no GPU, so few tokens and a small network"
    )  # fmt: skip
    return experiment, f"{reason}; {fitted}"


def refuse_published(recipe: str, method: Method) -> None:
    """Refuse a published recipe with another method than its own (InputError)."""
    if recipe in published.NAMES and method != "ijepa":
        raise InputError(f"{recipe} is a published I-JEPA recipe; --objective {method} goes with small or standard")


def scaled(experiment: Experiment, recipe: Experiment, asked: Collection[str] = ()) -> Experiment:
    """An experiment that differs from its recipe in the batch, with learning rates to go with it: times the root of the
    ratio, for what AdamW sees of noise goes with that root.

    With a batch of 16 instead of 64, so scaled, the sample gains 1.7 points of k-NN over the rates as they are, and
    loses 0.3 on the linear probe; with 256 it gains 0.6 and 0.9 (1,500 steps, two seeds, benchmarks/README.md).

    Source: Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms".

    Args:
        asked: names of settings that were asked for, as ``--schedule.lr``, and stay as they are.
    """
    factor = math.sqrt(experiment.training.batch / recipe.training.batch)
    names = {"start_lr": "--schedule.start-lr", "lr": "--schedule.lr", "final_lr": "--schedule.final-lr"}
    rates = {name: getattr(experiment.schedule, name) for name, option in names.items() if option not in asked}
    schedule = replace(experiment.schedule, **{name: factor * rate for name, rate in rates.items()})
    return replace(experiment, schedule=schedule)


def _few_tokens(short: int, channels: int) -> float:
    """Tokens on the short side for the small recipe: 4 to 8, and rather fewer than with next to nothing in each.

    A patch of 48 values is 4x4 px in colour and 7x7 in grey; on 28 px grey images the latter gave a better encoder than
    4x4 px in a third of the time, on 32 px colour photos 4x4 px was the better one. Images of 8 px are worth 8x8 tokens
    all the same: handwritten digits gained 7 points of k-NN and 9 of linear probe at equal cost (LOG.md).
    """
    if short < _FEWEST_PIXELS:
        return 8.0
    return min(8.0, max(4.0, short / math.sqrt(48 / channels)))


def fit(
    size: tuple[int, int], wanted: tuple[int, int] | None, *, about: tuple[int, int], side: int, tokens: float
) -> tuple[tuple[int, int], tuple[int, int], str]:
    """The encoder's input and patch, both (height, width) in pixels, and a remark on how they came about.

    Images far from square keep their proportions, up to _MOST_TOKENS in all; ``tokens`` is about the number on the
    short side, and ``about`` what the remark says of the images' own size.
    """
    rows, columns = wanted or size
    short, ratio = min(rows, columns), max(rows, columns) / min(rows, columns)
    native = wanted is not None or short < _NATIVE_BELOW
    if wanted is None:
        short = max(short, _FEWEST_PIXELS)
    if not native:
        short = side
    edge = max(2, round(short / tokens)) if short < 100 else 16 if short % 16 == 0 else 14
    if native and short % edge:
        edge = min(
            (e for e in range(2, short + 1) if short % e == 0), key=lambda e: abs(short / e - tokens), default=edge
        )
        if not 0.5 <= short / edge / tokens <= 2:
            edge = max(2, round(short / tokens))
    square = wanted is None and ratio < 1.5
    long = short if square else short * ratio
    counts = [max(2, round(short / edge)), max(2, round(long / edge))]
    cut = wanted is None and counts[0] * counts[1] > _MOST_TOKENS
    if cut:
        counts[1] = max(counts[0], _MOST_TOKENS // counts[0])
    signal = (counts[0] * edge, counts[1] * edge) if rows <= columns else (counts[1] * edge, counts[0] * edge)
    if wanted is not None and signal != wanted:
        raise InputError(
            f"--image-size {rows} {columns} is no multiple of a fitting patch; the nearest is {signal[0]} {signal[1]}"
        )
    same = (
        "their own size"
        if signal == about
        else f"resized to {signal[0]}x{signal[1]} px from about {about[0]}x{about[1]}"
    )
    if cut:
        same += (
            f", a part of their length: whole they would be more than {_MOST_TOKENS:,} tokens (--image-size decides)"
        )
    return signal, (edge, edge), same


def _published(name: str, wanted, mean, std) -> Experiment:
    """With ImageNet's mean and standard deviation for colour images, as published, and with the data's for others.

    Raises:
        InputError: the size that was asked for is no multiple of the patch.
    """
    experiment = published.published(name)
    patch = experiment.encoder.patch
    if wanted and any(extent % edge or extent < edge for extent, edge in zip(wanted, patch, strict=True)):
        nearest = (max(1, round(extent / edge)) * edge for extent, edge in zip(wanted, patch, strict=True))
        raise InputError(
            f"--image-size {wanted[0]} {wanted[1]} is no multiple of {name}'s patch of {patch[0]}x{patch[1]} px; the "
            f"nearest is {' '.join(map(str, nearest))}"
        )
    encoder = replace(experiment.encoder, signal=wanted or experiment.encoder.signal, channels=len(mean))
    if len(mean) == 3:
        return replace(experiment, encoder=encoder)
    return replace(experiment, encoder=encoder, mean=mean, std=std)

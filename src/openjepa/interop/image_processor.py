"""How an image becomes an encoder's input, as the ``preprocessor_config.json`` that transformers reads and writes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from openjepa.encoder import EncoderConfig
from openjepa.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BICUBIC = 3  # PIL's number, which the file holds
# What of the file decides which pixels an encoder sees, beside their scale.
_PIXELS = ("do_resize", "size", "resample", "do_center_crop", "crop_size")


@runtime_checkable
class PreprocessingLike(Protocol):
    """The facts of an encoder's input: extents, channels, and the mean and deviation of values in [0, 1]."""

    @property
    def size(self) -> tuple[int, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


def describe(preprocessing: PreprocessingLike) -> dict[str, Any]:
    """The facts as plain values."""
    names = ("size", "channels", "mean", "std")
    return {name: getattr(preprocessing, name) for name in names}


def check_facts(facts: object, config: EncoderConfig, where: str) -> dict[str, Any]:
    """The facts as tuples of numbers, refused where they do not fit the encoder."""
    if not isinstance(facts, Mapping) or not {"size", "channels", "mean", "std"} <= set(facts):
        raise InputError(f"{where} should give size, channels, mean and std, and is {facts!r}.")
    size = facts["size"]
    whole = isinstance(size, Sequence) and all(isinstance(extent, int) and extent > 0 for extent in size)
    if not whole or len(size) != len(config.signal) or facts["channels"] != config.channels:
        raise InputError(
            f"{where} describes inputs of {facts['channels']} channels and size {size!r}; the encoder reads "
            f"{config.channels} channels and {len(config.signal)} axes."
        )
    mean, std = (_values(facts[name], config.channels, f"{name} in {where}") for name in ("mean", "std"))
    if min(std) <= 0:
        raise InputError(f"{where} divides by {std}: every standard deviation must be positive.")
    marked = {"assumed": True} if facts.get("assumed") else {}
    return {"size": tuple(size), "channels": config.channels, "mean": mean, "std": std} | marked


def assumed(config: EncoderConfig) -> dict[str, Any]:
    """What is taken where nobody says: ImageNet's mean and deviation for three channels, else a half and a quarter."""
    rgb = config.channels == 3
    return {
        "size": config.signal,
        "channels": config.channels,
        "mean": IMAGENET_MEAN if rgb else (0.5,) * config.channels,
        "std": IMAGENET_STD if rgb else (0.25,) * config.channels,
        "assumed": True,
    }


def processor_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The file for transformers: the same tensors as ours, bicubic, covering and cut in the centre where it can.

    transformers knows how to cover a square (BiT's processor, which DINOv2 uses too); to an oblong it can only stretch.
    """
    height, width = facts["size"]
    extents = {"height": height, "width": width}
    shape: dict[str, Any] = (
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": height},
            "do_center_crop": True,
            "crop_size": extents,
        }
        if height == width
        else {"image_processor_type": "ViTImageProcessor", "size": extents}
    )
    return shape | {
        "do_convert_rgb": facts["channels"] == 3,
        "do_resize": True,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts["mean"]),
        "image_std": list(facts["std"]),
    }


def read_processor(content: Mapping[str, Any], config: EncoderConfig, where: str) -> dict[str, Any]:
    """The facts in somebody's ``preprocessor_config.json``; a scale other than 1/255 is folded into mean and std."""
    mean, std = (0.0,) * config.channels, (1.0,) * config.channels
    if content.get("do_normalize", True):
        mean = _values(content.get("image_mean", 0.5), config.channels, f"image_mean in {where}")
        std = _values(content.get("image_std", 0.5), config.channels, f"image_std in {where}")
    factor = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or factor <= 0 or min(std) <= 0:
        raise InputError(f"{where} divides by {std} after scaling by {factor}: both must be positive.")
    scale = 1.0 if abs(255 * factor - 1) < 1e-9 else 255 * factor
    cropped = bool(content.get("do_center_crop")) and "crop_size" in content
    size = _extents(content.get("crop_size" if cropped else "size"), config, where)
    return {
        "size": size,
        "channels": config.channels,
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
    }


def otherwise(content: Mapping[str, Any], facts: Mapping[str, Any], *, own: bool) -> str:
    """What somebody's ``preprocessor_config.json`` does to images, in words, where that is not what is done here.

    Empty for a file like that of an export of ours with these ``facts``. To an oblong our export can only have
    transformers stretch images, which is no departure where it is our ``own``, and one where somebody else says so.
    """
    expected, (height, width) = processor_config(facts), facts["size"]
    kind = content.get("image_processor_type") or content.get("feature_extractor_type")
    if kind is None:  # nothing is said of more than scale
        return ""
    # Sizes were one number once: of BiT's the short side, of ViT's both.
    square = expected["image_processor_type"].startswith("ViT")
    spelt = {name: _spelt(content.get(name), square or name == "crop_size") for name in ("size", "crop_size")}
    content = {**content, **{name: value for name, value in spelt.items() if value is not None}}
    alike = kind.removesuffix("Fast") == expected["image_processor_type"]
    if alike and (own or height == width) and all(content.get(name) == expected.get(name) for name in _PIXELS):
        return ""
    return _in_words(content, height, width)


def _spelt(size: object, square: bool) -> object:
    """A size as transformers spells it today, if it was one number."""
    if not isinstance(size, int):
        return size
    return {"height": size, "width": size} if square else {"shortest_edge": size}


def _in_words(content: Mapping[str, Any], height: int, width: int) -> str:
    numbers = {method.value: method.name.lower() for method in Image.Resampling}
    method = numbers.get(content.get("resample", -1), "resampling of its own")
    match content.get("size"):
        case _ if not content.get("do_resize", True):
            words = "leaves the size of images as it is"
        case {"shortest_edge": int(edge)}:
            words = f"makes the short side of images {edge} px ({method})"
        case _:
            words = f"stretches images to {height}x{width} px ({method})"
    return words + (f" and cuts {height}x{width} px out of the centre" if content.get("do_center_crop") else "")


def _values(given: object, channels: int, where: str) -> tuple[float, ...]:
    values = [given] * channels if isinstance(given, int | float) else given
    if not isinstance(values, Sequence) or not all(isinstance(value, int | float) for value in values):
        raise InputError(f"{where} should be {channels} numbers and is {given!r}.")
    if len(values) != channels:
        raise InputError(f"{where} has {len(values)} values and the encoder reads {channels} channels.")
    return tuple(float(value) for value in values)


def _extents(given: object, config: EncoderConfig, where: str) -> tuple[int, ...]:
    """Height and width in any of the spellings that transformers has had; nothing said is the encoder's own size."""
    match given:
        case None:
            return config.signal
        case {"height": int(height), "width": int(width)}:
            return height, width
        case {"shortest_edge": int(edge)} | int(edge):
            return edge, edge
        case [int(height), int(width)]:
            return height, width
        case _:
            raise InputError(f"the image size in {where} is {given!r}; height and width, or one edge, were expected.")

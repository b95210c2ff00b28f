"""Encoders of other libraries, read from directories on this machine: Hugging Face transformers, and timm."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from openjepa.assessment.encoders import BLOCKS, Panel, Read, Reading, network, panel, weights_hash
from openjepa.assessment.twin import RANDOM_SEED
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Picture
from openjepa.data.pixels import Pixels, as_image, with_channels
from openjepa.errors import InputError
from openjepa.evaluation.suite import RANDOM

PATCHES, CLASS_TOKEN = "encoder (mean of patch tokens)", "encoder (class token)"
_RANDOM_CLASS = "random encoder (class token)"


@dataclass(frozen=True, kw_only=True)
class ForeignPreprocessing(Preprocessing):
    """The other library's own way from an image to numbers in [0, 1], before mean and deviation.

    ``process`` takes an 8-bit image, as such models' own tools do, and gives float32 (C, H, W). ``text`` says it in
    words, for the cache.
    """

    process: Callable[[Image.Image], Tensor] = field(compare=False, repr=False)
    text: str = ""

    def fit(self, image: Picture) -> Pixels:
        """The image as the model's own tools would cut and resize it."""
        picture = with_channels(image, self.channels)
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8:
                unit = picture / np.iinfo(picture.dtype).max if picture.dtype.kind == "u" else picture
                picture = (unit * 255).round().astype(np.uint8)
            picture = as_image(picture)
        return self.process(picture).float().clamp(0, 1)


def open_transformers(folder: Path, device: torch.device | str) -> Panel:
    """A vision model that ``transformers.AutoModel`` reads, with its image processor; nothing is fetched or executed.

    Raises:
        InputError: transformers is missing, or cannot read it.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
    except ImportError as error:
        raise InputError(f"{folder} needs transformers: pip install 'openjepa[export]' ({error})") from error
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model, info = AutoModel.from_pretrained(
                folder, config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
            with _seeded():
                random = AutoModel.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise InputError(f"transformers cannot read {folder}: {_first_line(error)}") from error
    # A pooler is no part of the features that are read.
    if absent := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise InputError(f"{folder} lacks {len(absent)} weights of its model, for example {absent[0]}: restore them")
    preprocessing = _processed(folder, processor, config)
    depth = getattr(config, "num_hidden_layers", None)
    shown = _probe_transformers(folder, model, config, preprocessing)
    reader = partial(_read_transformers, config=config)
    return _panel(folder, model, random, reader, shown, preprocessing, device, depth)


def open_timm(folder: Path, device: torch.device | str) -> Panel:
    """A model directory as timm writes it for a hub: config.json and weights; nothing is fetched or executed.

    Raises:
        InputError: timm is missing, or cannot read it.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{folder} needs timm: pip install 'openjepa[parity]' ({error})") from error
    from timm.data import create_transform, resolve_model_data_config

    name = f"local-dir:{folder.absolute()}"
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0).eval()
        with _seeded():
            random = timm.create_model(name, pretrained=False, num_classes=0).eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"timm cannot read {folder}: {_first_line(error)}") from error
    data = resolve_model_data_config(model)
    channels, height, width = data["input_size"]
    steps: Any = create_transform(**data, is_training=False)
    # The last step is the normalisation, which is ours to do, so that raw pixels can be taken before it.
    *steps, last = steps.transforms
    if type(last).__name__ != "Normalize":
        raise InputError(f"{folder}: timm prepares its images in an unknown way ({last})")
    preprocessing = ForeignPreprocessing(
        size=(height, width),
        channels=channels,
        mean=tuple(map(float, data["mean"])),
        std=tuple(map(float, data["std"])),
        process=_Steps(tuple(steps)),
        text=str(data),
    )
    blocks = getattr(model, "blocks", None)
    depth = len(blocks) if blocks is not None and hasattr(model, "forward_intermediates") else None
    shown = _read_timm(model)(torch.zeros(1, channels, height, width), 1)
    return _panel(folder, model, random, _read_timm, shown, preprocessing, device, depth)


def _panel(
    folder: Path,
    model: nn.Module,
    random: nn.Module,
    reader: Callable[[Any], Read],
    shown: Reading,
    preprocessing: Preprocessing,
    device: torch.device | str,
    depth: int | None,
) -> Panel:
    classes = shown.class_token is not None
    depth = _blocks(reader(model), shown.blocks[-1], preprocessing, depth)
    networks = []
    for name, class_name, one in ((PATCHES, CLASS_TOKEN, model), (RANDOM, _RANDOM_CLASS, random)):
        one = one.to(device).eval()
        # Weights do not show everything: heads, epsilons and activations stand in the configuration.
        described = str(getattr(one, "config", None) or getattr(one, "pretrained_cfg", None)), str(one)
        identity = [type(one).__name__, weights_hash(one), *described]
        read = reader(one)
        networks.append(network(read, preprocessing, device, name, identity, depth, class_name if classes else None))
    notes = []
    if classes:
        notes.append("The random encoder beside both is the mean of its patch tokens; its class token has its own row.")
    if not depth:
        notes.append(f"{folder.name} has no blocks that can be read one by one: nothing is said of the last four.")
    _, tokens, width = shown.blocks[-1].shape
    subjects = (PATCHES, CLASS_TOKEN) if classes else (PATCHES,)
    return panel(subjects, networks, preprocessing, (tokens, width), device, depth, notes)


def _blocks(read: Read, last: Tensor, preprocessing: Preprocessing, depth: int | None) -> int | None:
    """The number of blocks whose outputs can be read like the ``last`` one's; None for stages of other shapes."""
    if not depth:
        return None
    asked = min(BLOCKS, depth)
    try:
        found = read(torch.zeros(1, preprocessing.channels, *preprocessing.size), asked).blocks
    except (RuntimeError, AssertionError, TypeError, ValueError, AttributeError):
        return None  # each library says in its own way that it cannot
    return depth if [block.shape for block in found] == [last.shape] * asked else None


def _processed(folder: Path, processor: Any, config: Any) -> ForeignPreprocessing:
    """The image processor without its normalisation, which is ours to do, so that raw pixels can be taken before it."""
    channels = int(getattr(config, "num_channels", 3))
    process = _Processor(processor)
    tried = process(Image.new("RGB" if channels == 3 else "L", (64, 48)))
    if tried.ndim != 3 or tried.shape[0] != channels:
        raise InputError(f"{folder}: its image processor gives {tuple(tried.shape)}, {channels} channels are wanted")
    normalised = getattr(processor, "do_normalize", False)
    mean = tuple(processor.image_mean) if normalised else (0.0,) * channels
    std = tuple(processor.image_std) if normalised else (1.0,) * channels
    return ForeignPreprocessing(
        size=(tried.shape[1], tried.shape[2]),
        channels=channels,
        mean=mean,
        std=std,
        process=process,
        text=str(processor.to_json_string()),
    )


@dataclass(frozen=True)
class _Processor:
    """A transformers image processor up to [0, 1]; an object, since it goes to the loader's processes."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processor(image, return_tensors="pt", do_normalize=False)["pixel_values"][0]


@dataclass(frozen=True)
class _Steps:
    """timm's transforms up to [0, 1]."""

    steps: tuple[Any, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        value: Any = image
        for step in self.steps:
            value = step(value)
        return value


def _probe_transformers(folder: Path, model: Any, config: Any, preprocessing: Preprocessing) -> Reading:
    """What the model gives for an empty image, which shows whether it can be read at all."""
    try:
        return _read_transformers(model, config)(torch.zeros(1, preprocessing.channels, *preprocessing.size), 1)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder} is a {config.model_type} model, which gives no image features that can be read "
            f"({_first_line(error)})"
        ) from error


def _read_transformers(model: Any, config: Any) -> Read:
    model.eval()
    norm = next((getattr(model, name) for name in ("layernorm", "norm") if hasattr(model, name)), None)

    @torch.inference_mode()
    def read(x: Tensor, blocks: int) -> Reading:
        output = model(pixel_values=x, output_hidden_states=blocks > 1)
        last = output.last_hidden_state
        if last.ndim == 4:  # a convolutional network: channels first
            return Reading([last.flatten(2).mT], None)
        before = last.shape[1] - _patches(x.shape[2:], config, last.shape[1])
        states = [last]
        if blocks > 1:
            # The last state is after the norm already; the earlier ones are before it, where the model has one.
            states = [state if norm is None else norm(state) for state in output.hidden_states[-blocks:-1]] + [last]
        return Reading([state[:, before:] for state in states], last[:, 0] if before else None)

    return read


def _patches(size: Any, config: Any, tokens: int) -> int:
    """How many of the tokens are patches; the class token and registers come before them."""
    patch = getattr(config, "patch_size", None)
    if patch is None:
        return tokens
    extents = (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
    patches = math.prod(extent // step for extent, step in zip(size, extents, strict=True))
    return patches if 0 < patches <= tokens else tokens


def _read_timm(model: Any) -> Read:
    model.eval()

    @torch.inference_mode()
    def read(x: Tensor, blocks: int) -> Reading:
        if blocks > 1:
            found = model.forward_intermediates(x, indices=blocks, norm=True, output_fmt="NLC", intermediates_only=True)
            return Reading(list(found), None if not _prefix(model) else model.forward_features(x)[:, 0])
        last = model.forward_features(x)
        if last.ndim == 4:
            first = last.shape[1] == model.num_features and last.shape[3] != model.num_features
            return Reading([last.flatten(2).mT if first else last.flatten(1, 2)], None)
        prefix = _prefix(model)
        return Reading([last[:, prefix:]], last[:, 0] if prefix else None)

    return read


def _prefix(model: Any) -> int:
    return int(getattr(model, "num_prefix_tokens", 0))


@contextmanager
def _seeded() -> Iterator[None]:
    """Other libraries draw their weights from PyTorch's global generator: seed it, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        yield


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

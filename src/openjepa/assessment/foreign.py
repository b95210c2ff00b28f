"""Encoders of other libraries, read from directories on this machine: Hugging Face transformers, and timm."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openjepa import draws
from openjepa.assessment.encoders import BLOCKS, Panel, Read, Reading, cut, network, panel, weights_hash
from openjepa.assessment.image_tools import WHOLE, ForeignPreprocessing, TimmTools, processed
from openjepa.assessment.twin import RANDOM_SEED
from openjepa.data.augmentation import Preprocessing
from openjepa.errors import InputError
from openjepa.evaluation.finetune import Backbone, seeded
from openjepa.evaluation.suite import RANDOM

PATCHES, CLASS_TOKEN = "encoder (mean of patch tokens)", "encoder (class token)"
_RANDOM_CLASS = "random encoder (class token)"
# transformers' model type that leaves out patches at random, also when it is not trained.
_MASKING = "vit_mae"
# Weights that an old timm unpickles without asking whether they are weights alone.
_PICKLES, _NO_PICKLES = (".bin", ".pth", ".pt", ".tar", ".ckpt"), (1, 0, 31)
# Each library, and each model of it, says in its own way that it cannot.
_UNREADABLE = (RuntimeError, AssertionError, TypeError, ValueError, AttributeError, LookupError)


def open_transformers(folder: Path, device: torch.device | str) -> Panel:
    """A vision model that ``transformers.AutoModel`` reads, with its image processor; nothing is fetched or executed.

    Raises:
        InputError: transformers is missing, or cannot read it, or the model gives other features each time.
    """
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
    except ImportError as error:
        raise InputError(f"{folder} needs transformers: pip install 'openjepa[export]' ({error})") from error
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if config.model_type == _MASKING:
                config.mask_ratio = 0.0
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, info = AutoModel.from_pretrained(
                folder,
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
            with seeded(RANDOM_SEED):
                random = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise InputError(f"transformers cannot read {folder}: {_first_line(error)}") from error
    # A pooler is no part of the features that are read.
    if absent := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise InputError(f"{folder} lacks {len(absent)} weights of its model, for example {absent[0]}: restore them")
    preprocessing = processed(folder, processor, config)
    depth = getattr(config, "num_hidden_layers", None)
    shown = _probe_transformers(folder, model, config, preprocessing)
    norm = _final_norm(model, config, preprocessing)
    read = partial(_read_transformers, config=config, norm=norm)
    return _panel(folder, model, random, read, shown, preprocessing, device, depth, norm)


def open_timm(folder: Path, device: torch.device | str) -> Panel:
    """A model directory as timm writes it for a hub: config.json and weights; nothing is fetched or executed.

    Raises:
        InputError: timm is missing, or cannot read it, or the model gives other features each time.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{folder} needs timm: pip install 'openjepa[timm]' ({error})") from error
    from timm.data import create_transform, resolve_model_data_config

    pickled = sorted(path.name for path in folder.iterdir() if path.name.endswith(_PICKLES))
    if pickled and tuple(int(part) for part in re.findall(r"\d+", timm.__version__)[:3]) < _NO_PICKLES:
        raise InputError(
            f"{folder} holds a pickle ({pickled[0]}), which timm {timm.__version__} would execute: pip install -U "
            "'timm>=1.0.31', or leave model.safetensors alone there"
        )
    name = f"local-dir:{folder.absolute()}"
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0).eval()
        with seeded(RANDOM_SEED):
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
        process=TimmTools(tuple(steps)),
        text=WHOLE + str(data),
    )
    blocks = getattr(model, "blocks", None)
    depth = len(blocks) if blocks is not None and hasattr(model, "forward_intermediates") else None
    shown = _probe_timm(folder, model, preprocessing)
    norm = None if isinstance(_final_norm_of_timm(model), nn.Identity) else "fc_norm"
    return _panel(folder, model, random, _read_timm, shown, preprocessing, device, depth, norm)


def _panel(
    folder: Path,
    model: nn.Module,
    random: nn.Module,
    read: Read,
    shown: Reading,
    preprocessing: Preprocessing,
    device: torch.device | str,
    depth: int | None,
    norm: str | None = None,
) -> Panel:
    first, second = shown.blocks[-1], _shown(read, model, preprocessing).blocks[-1]
    if first.shape != second.shape or not torch.allclose(first, second, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InputError(
            f"{folder} is not deterministic: its features of one and the same image differ from pass to pass, so they "
            "cannot be judged; save the model without what it draws at random (masks, dropout)"
        )
    classes = shown.class_token is not None
    depth = _blocks(read, model, shown.blocks[-1], preprocessing, depth)
    networks, (_, tokens, width) = [], shown.blocks[-1].shape
    for name, class_name, one in ((PATCHES, CLASS_TOKEN, model), (RANDOM, _RANDOM_CLASS, random)):
        one = one.to(device).eval()
        # Weights do not show everything: heads, epsilons and activations stand in the configuration.
        described = str(getattr(one, "config", None) or getattr(one, "pretrained_cfg", None)), str(one)
        identity = [type(one).__name__, weights_hash(one), *described, norm]
        token = class_name if classes else None
        networks.append(network(one, read, preprocessing, device, name, identity, depth, token))
    notes = []
    if classes:
        notes.append("The random encoder beside both is the mean of its patch tokens; its class token has its own row.")
    if not depth:
        notes.append(f"{folder.name} has no blocks that can be read one by one: nothing is said of the last four.")
    subjects = (PATCHES, CLASS_TOKEN) if classes else (PATCHES,)
    normalise, modules = preprocessing.normalise, (PatchTokens(one, read) for one in (model, random))
    mine, other = (Backbone(encoder=one, width=width, normalise=normalise) for one in modules)
    return panel(subjects, networks, (mine, other), preprocessing, (tokens, width), shown.grid, device, depth, notes)


class PatchTokens(nn.Module):
    """Another library's model as a module from normalised images "B C H W" to its patch tokens "B N D"."""

    def __init__(self, model: nn.Module, read: Read) -> None:
        super().__init__()
        self.model = model
        self._read = read

    def forward(self, x: Tensor) -> Tensor:
        """The tokens of the last block."""
        return self._read(self.model, x, 1).blocks[-1].float()


@torch.inference_mode()
def _shown(read: Read, model: nn.Module, preprocessing: Preprocessing, blocks: int = 1) -> Reading:
    """What the model gives for the image of noise."""
    return read(model, _probe(preprocessing), blocks)


def _probe(preprocessing: Preprocessing) -> Tensor:
    """An image "1 C H W" of noise, the same each time, that shows what a model gives."""
    extents = (1, preprocessing.channels, *preprocessing.size)
    return torch.from_numpy(draws.uniform("probe", np.arange(math.prod(extents)))).float().view(extents)


def _blocks(read: Read, model: nn.Module, last: Tensor, preprocessing: Preprocessing, depth: int | None) -> int | None:
    """The number of blocks whose outputs can be read like the ``last`` one's; None for stages of other shapes."""
    if not depth:
        return None
    asked = min(BLOCKS, depth)
    try:
        found = _shown(read, model, preprocessing, asked).blocks
    except _UNREADABLE:
        return None
    return depth if [block.shape for block in found] == [last.shape] * asked else None


def _probe_transformers(folder: Path, model: Any, config: Any, preprocessing: Preprocessing) -> Reading:
    """What the model gives for an image, which shows whether it can be read at all."""
    try:
        return _shown(partial(_read_transformers, config=config), model, preprocessing)
    except _UNREADABLE as error:
        raise InputError(
            f"{folder} is a {config.model_type} model, which gives no image features that can be read "
            f"({_first_line(error)})"
        ) from error


def _probe_timm(folder: Path, model: Any, preprocessing: Preprocessing) -> Reading:
    """What the model gives for an image, which shows whether it can be read at all."""
    try:
        return _shown(_read_timm, model, preprocessing)
    except _UNREADABLE as error:
        raise InputError(
            f"{folder} is a {type(model).__name__} of timm, which gives no image features that can be read, for an "
            f"image of {preprocessing.size} px with {preprocessing.channels} channels as its config.json has it "
            f"({_first_line(error)}): pretrained_cfg.input_size there must be what the model was made for"
        ) from error


def _forward(model: Any, config: Any, x: Tensor, *, states: bool = False) -> Any:
    """What the model gives for normalised images, with its ``hidden_states`` where they are asked for."""
    order = {}
    if config.model_type == _MASKING:  # it sorts its patches by noise
        patches = math.prod(cut(x.shape[2:], _extents(config.patch_size)))
        order = {"noise": torch.arange(patches, dtype=torch.float32, device=x.device).expand(len(x), -1)}
    return model(pixel_values=x, output_hidden_states=states, **order)


@torch.inference_mode()
def _final_norm(model: nn.Module, config: Any, preprocessing: Preprocessing) -> str | None:
    """The name of the norm that all tokens go through after the last block, None where there is none.

    Its name alone does not tell: CLIP's ``post_layernorm`` is its pooled token's, SigLIP's is that of all tokens.
    """
    given: dict[str, Any] = {}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: given.update({name: output}))
        for name, module in model.named_modules()
        if "norm" in name.rpartition(".")[2] and not any(part.isdigit() for part in name.split("."))  # not of a block
    ]
    last = _forward(model.eval(), config, _probe(preprocessing)).last_hidden_state
    for hook in hooks:
        hook.remove()
    alike = {name: value for name, value in given.items() if isinstance(value, Tensor) and value.shape == last.shape}
    return next((name for name, value in alike.items() if torch.allclose(value, last)), None)


def _read_transformers(model: Any, x: Tensor, blocks: int, *, config: Any, norm: str | None = None) -> Reading:
    """``norm`` is the name of the norm after the last block, for the blocks before it."""
    final = nn.Identity() if norm is None else model.get_submodule(norm)
    patch = getattr(config, "patch_size", None)
    output = _forward(model, config, x, states=blocks > 1)
    last = output.last_hidden_state
    if last.ndim == 4:  # a convolutional network: channels first
        return Reading([last.flatten(2).mT], None, _extents(last.shape[2:]))
    patches = _patches(x.shape[2:], patch, last.shape[1])
    before = last.shape[1] - patches
    states = [last]
    if blocks > 1:
        # The last state is after the norm already; the earlier ones are before it, where the model has one.
        states = [*map(final, output.hidden_states[-blocks:-1]), last]
    grid = _grid(x.shape[2:], patch, patches)
    return Reading([state[:, before:] for state in states], last[:, 0] if before else None, grid)


def _patches(size: Sequence[int], patch: Any, tokens: int) -> int:
    """How many of the tokens are patches; the class token and registers come before them."""
    if patch is None:
        return tokens
    patches = math.prod(cut(size, _extents(patch)))
    return patches if 0 < patches <= tokens else tokens


def _grid(size: Sequence[int], patch: Any, tokens: int) -> tuple[int, int] | None:
    """Rows and columns of patch tokens: the image cut into the model's patches or, where a network of stages has joined
    those, into as many squares; None where neither gives so many."""
    side = math.isqrt(math.prod(size) // tokens)
    for extents in ([] if patch is None else [_extents(patch)]) + ([(side, side)] if side else []):
        if math.prod(grid := cut(size, extents)) == tokens:
            return grid
    return None


def _extents(patch: Any) -> tuple[int, int]:
    """Height and width of what is given as one number, or as several of which the last two count."""
    rows, columns = (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
    return rows, columns


def _read_timm(model: Any, x: Tensor, blocks: int) -> Reading:
    """Where a model pools patches it may have its final norm behind the pooling (``fc_norm``) and none before: timm
    itself then norms the mean of the tokens. Here each token goes through that norm, as those of other models do."""
    norm = _final_norm_of_timm(model)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    # Or they are registers alone; a NaFlexViT has the token in its embedding.
    has_class = bool(prefix) and any(
        getattr(part, "cls_token", None) is not None for part in (model, getattr(model, "embeds", None))
    )
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if blocks > 1:
        found = model.forward_intermediates(x, indices=blocks, norm=True, output_fmt="NLC", intermediates_only=True)
        token = norm(model.forward_features(x)[:, 0]) if has_class else None
        return Reading([norm(block) for block in found], token, _grid(x.shape[2:], patch, found[-1].shape[1]))
    last = model.forward_features(x)
    if last.ndim == 4:
        first = last.shape[1] == model.num_features and last.shape[3] != model.num_features
        grid = _extents(last.shape[2:] if first else last.shape[1:3])
        return Reading([last.flatten(2).mT if first else last.flatten(1, 2)], None, grid)
    last = norm(last)
    tokens = last[:, prefix:]
    return Reading([tokens], last[:, 0] if has_class else None, _grid(x.shape[2:], patch, tokens.shape[1]))


def _final_norm_of_timm(model: Any) -> nn.Module:
    """The norm that the tokens of ``forward_features`` still lack: ``fc_norm`` where the model's own is none."""
    before, after = getattr(model, "norm", None), getattr(model, "fc_norm", None)
    return after if isinstance(before, nn.Identity) and isinstance(after, nn.Module) else nn.Identity()


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

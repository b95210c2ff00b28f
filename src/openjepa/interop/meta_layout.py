"""Names and shapes of the published I-JEPA weights, and the architecture that they show."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openjepa.encoder import Encoder, EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.files import whole_file
from openjepa.grid import TokenGrid
from openjepa.interop.assembly import State, check_names, is_sincos, mlp_ratio

PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Heads of the published encoders (Ti, S, B, L, H, g) by width; their predictors have as many."""


PUBLISHED_EPS = 1e-6
"""Epsilon of every LayerNorm of the published networks."""

_LAYERS = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


def encoder_names(config: EncoderConfig) -> dict[str, str]:
    """Published name to ours, for every tensor of an encoder, in the published order."""
    modules = {"patch_embed.proj": "embed"} | _block_names("blocks", config.depth) | {"norm": "stack.norm"}
    return {"pos_embed": "table"} | _parameter_names(modules, config.qkv_bias)


def predictor_names(config: PredictorConfig) -> dict[str, str]:
    """Published name to ours, for every tensor of a predictor, in the published order."""
    modules = {"predictor_embed": "embed"} | _block_names("predictor_blocks", config.depth)
    modules |= {"predictor_norm": "stack.norm", "predictor_proj": "project"}
    return {"mask_token": "mask_token", "predictor_pos_embed": "table"} | _parameter_names(modules, config.qkv_bias)


def _block_names(blocks: str, depth: int) -> dict[str, str]:
    return {
        f"{blocks}.{i}.{theirs}": f"stack.blocks.{i}.{ours}" for i in range(depth) for theirs, ours in _LAYERS.items()
    }


def _parameter_names(modules: dict[str, str], qkv_bias: bool) -> dict[str, str]:
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in modules.items()
        for kind in ("weight", "bias")
        if qkv_bias or kind == "weight" or not theirs.endswith("attn.qkv")
    }


def from_published(state: State, names: dict[str, str], where: str, keep_table: bool) -> State:
    """The state in our names and shapes: a convolution's kernel is the rows of our linear layer on patches."""
    check_names(set(state), set(names), where)
    ours = {names[name]: tensor for name, tensor in state.items()}
    table = ours.pop("table")
    if keep_table:
        ours["table"] = table[0]
    if ours["embed.weight"].ndim == 4:
        ours["embed.weight"] = ours["embed.weight"].flatten(1)
    return ours


def to_published(module: nn.Module, names: dict[str, str], prefix: str) -> State:
    """The tensors of a network in the published names and shapes, the position table among them."""
    ours = dict(module.state_dict()) | {"table": module.get_buffer("table")[None]}
    if isinstance(module, Encoder):
        config = module.config
        ours["embed.weight"] = ours["embed.weight"].reshape(config.width, config.channels, *config.patch)
    return {prefix + theirs: ours[name].detach().to("cpu", torch.float32).clone() for theirs, name in names.items()}


def check_writable(path: Path, config: EncoderConfig) -> None:
    """Refuse what a file of the published formats cannot be written to, or cannot hold.

    Raises:
        InputError: the file exists, or images or patches are not square.
    """
    if path.exists():
        raise InputError(f"will not overwrite {path}. Choose another name or remove it.")
    if len(config.signal) != 2 or len(set(config.signal)) > 1 or len(set(config.patch)) > 1:
        raise InputError(
            f"the published format holds square images and patches only, not {config.signal} cut into {config.patch}."
        )


def check_eps(config: EncoderConfig | PredictorConfig) -> None:
    """Refuse another epsilon than the published one, which the formats do not say."""
    if config.norm_eps != PUBLISHED_EPS:
        raise InputError(f"the published format means a LayerNorm epsilon of {PUBLISHED_EPS}, not {config.norm_eps}.")


def save_published(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of the published formats, whole or not at all; InputError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft:
            torch.save(content, draft)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write {path}: {error}.") from error


def _tensor(state: State, name: str, axes: int, where: str) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise InputError(f"{where} is not an I-JEPA network: it has no {name!r}.")
    if tensor.ndim != axes:
        raise InputError(f"{name!r} in {where} should have {axes} axes, and its shape is {tuple(tensor.shape)}.")
    return tensor


def encoder_config(state: State, heads: int | None, where: str) -> EncoderConfig:
    """The architecture of an encoder's published weights; ``heads`` of None takes the published number."""
    width, channels, patch, across = _tensor(state, "patch_embed.proj.weight", 4, where).shape
    table = _tensor(state, "pos_embed", 3, where)
    side = math.isqrt(table.shape[1])
    if patch != across or table.shape != (1, side * side, width) or side < 1:
        raise InputError(
            f"{where} is no square I-JEPA encoder without class token: its patch is {patch}x{across} and its position "
            f"table {tuple(table.shape)} for a width of {width}."
        )
    return EncoderConfig(
        signal=(side * patch, side * patch),
        patch=(patch, patch),
        channels=channels,
        heads=_heads(heads or PUBLISHED_HEADS.get(width), width, "--num-heads", where),
        positions="sincos" if is_sincos(table[0], TokenGrid((side, side))) else "learned",
        norm_eps=PUBLISHED_EPS,
        **_stack(state, "blocks", width, where),
    )


def predictor_config(state: State, encoder: EncoderConfig, heads: int | None, where: str) -> PredictorConfig:
    """The architecture of a predictor's published weights; ``heads`` of None takes the encoder's."""
    width = _tensor(state, "predictor_embed.weight", 2, where).shape[0]
    table = _tensor(state, "predictor_pos_embed", 3, where)
    if table.shape != (1, encoder.grid.size, width) or not is_sincos(table[0], encoder.grid):
        raise InputError(
            f"the position table of {where} (shape {tuple(table.shape)}) is not the fixed sine-cosine one of a "
            f"{encoder.grid.shape} grid and a width of {width}; no other is supported for a predictor."
        )
    return PredictorConfig(
        heads=_heads(heads or encoder.heads, width, "--predictor-heads", where),
        norm_eps=PUBLISHED_EPS,
        **_stack(state, "predictor_blocks", width, where),
    )


def _heads(heads: int | None, width: int, option: str, where: str) -> int:
    if heads is None:
        known = ", ".join(f"{published}: {count}" for published, count in PUBLISHED_HEADS.items())
        raise InputError(
            f"the weights of {where} do not show the number of attention heads, and its width {width} is none of the "
            f"published ones ({known}). Give it with {option}."
        )
    if heads < 1 or width % heads:
        raise InputError(f"{heads} attention heads do not divide the width {width} of {where}. Change {option}.")
    return heads


def _stack(state: State, blocks: str, width: int, where: str) -> dict[str, Any]:
    indices = [int(match[1]) for match in (re.match(rf"{blocks}\.(\d+)\.", name) for name in state) if match]
    if not indices:
        raise InputError(f"{where} is not an I-JEPA network: it has no {blocks!r}.")
    hidden = _tensor(state, f"{blocks}.0.mlp.fc1.weight", 2, where).shape[0]
    return {
        "width": width,
        "depth": max(indices) + 1,
        "mlp_ratio": mlp_ratio(hidden, width),
        "qkv_bias": f"{blocks}.0.attn.qkv.bias" in state,
    }

"""The published I-JEPA checkpoint format (`.pth.tar`), both ways.

A file holds the state dicts ``encoder`` (the context encoder), ``target_encoder`` and ``predictor``, their names with
or without a ``module.`` prefix, beside the state of a training run (``opt``, ``epoch``, ...), which is no part of the
weights. All of the architecture shows in the weights but the number of heads: Assran et al. 2023, app. A.1 gives those.
"""

import math
import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openjepa.encoder import Encoder, EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.grid import TokenGrid
from openjepa.interop.assembly import (
    State,
    build_encoder,
    build_predictor,
    check_finite,
    check_names,
    is_sincos,
    join_ijepa,
    mlp_ratio,
)
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig

PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
"""Heads of the published encoders (Ti, S, B, L, H, g) by width; their predictors have as many."""

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, pickle.UnpicklingError)
_LAYERS = {
    "norm1": "norm1",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


@dataclass(frozen=True, kw_only=True)
class ReferenceCheckpoint:
    """What a published checkpoint holds, in this library's names.

    Attributes:
        encoder_config, predictor_config: the architecture, as the weights show it.
        context, target, predictor: state dicts of the two encoders and of the predictor, float32; they may be mapped
            from the file, which must then stay in place.
        facts: plain values beside the weights (epoch, batch size, ...).
        ignored: names of what is no weight and was not read (the optimiser's state, ...).
    """

    encoder_config: EncoderConfig
    predictor_config: PredictorConfig
    context: State
    target: State
    predictor: State
    facts: dict[str, int | float | str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def epoch(self) -> int | None:
        """Epochs trained, where the file says so."""
        epoch = self.facts.get("epoch")
        return epoch if isinstance(epoch, int) else None

    def to_ijepa(self, config: IJEPAConfig | None = None, *, copy: bool = True) -> IJEPA:
        """The objective with all three networks loaded; without ``copy`` it shares the tensors of this object."""
        context, target, predictor = (
            {name: tensor.clone() if copy else tensor for name, tensor in state.items()}
            for state in (self.context, self.target, self.predictor)
        )
        encoder, width = self.encoder_config, self.encoder_config.width
        return join_ijepa(
            build_encoder(encoder, context, "the context encoder"),
            build_encoder(encoder, target, "the target encoder"),
            build_predictor(
                self.predictor_config, predictor, "the predictor", grid=encoder.grid, inputs=width, outputs=width
            ),
            config,
        )


def read(path: str | Path, *, heads: int | None = None, predictor_heads: int | None = None) -> ReferenceCheckpoint:
    """Read a published checkpoint without running any code that it may hold (``weights_only``).

    Args:
        path: the `.pth.tar` file.
        heads: of the encoder; None takes the published number for its width.
        predictor_heads: None takes the encoder's, as the published code does.

    Raises:
        InputError: no checkpoint, damaged, not I-JEPA's, or heads that cannot be told; the message names what.
    """
    where = str(path)
    checkpoint = parse(_load(Path(path)), heads=heads, predictor_heads=predictor_heads, where=where)
    for name in ("context", "target", "predictor"):
        check_finite(getattr(checkpoint, name), f"the {name} network of {where}")
    return checkpoint


def parse(
    content: Mapping[str, Any],
    *,
    heads: int | None = None,
    predictor_heads: int | None = None,
    where: str = "the checkpoint",
) -> ReferenceCheckpoint:
    """What :func:`read` makes of the loaded mapping."""
    context, target, predictor = (_section(content, name, where) for name in ("encoder", "target_encoder", "predictor"))
    config = _encoder_config(target, heads, f"`target_encoder` of {where}")
    other = _encoder_config(context, heads, f"`encoder` of {where}")
    if other != config:
        raise InputError(f"{where} holds two encoders of different shape: {other} and {config}.")
    learned = config.positions == "learned"
    narrow = _predictor_config(predictor, config, predictor_heads, f"`predictor` of {where}")
    rest = {name: value for name, value in content.items() if name not in ("encoder", "target_encoder", "predictor")}
    checkpoint = ReferenceCheckpoint(
        encoder_config=config,
        predictor_config=narrow,
        context=_rename(context, encoder_names(config), f"`encoder` of {where}", learned),
        target=_rename(target, encoder_names(config), f"`target_encoder` of {where}", learned),
        predictor=_rename(predictor, predictor_names(narrow), f"`predictor` of {where}", False),
        facts={name: value for name, value in rest.items() if isinstance(value, int | float | str)},
        ignored=tuple(name for name, value in rest.items() if not isinstance(value, int | float | str)),
    )
    checkpoint.to_ijepa(copy=False)  # refuses wrong shapes here, where the file is still known
    return checkpoint


def write(ijepa: IJEPA, path: str | Path, *, epoch: int = 0, prefix: str = "module.") -> None:
    """Write an objective as a published checkpoint (weights and position tables; no optimiser state).

    Raises:
        InputError: the file exists, or the format cannot hold the architecture (it knows square images and patches).
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"will not overwrite {path}. Choose another name or remove it.")
    config = ijepa.target_encoder.config
    if len(config.signal) != 2 or len(set(config.signal)) > 1 or len(set(config.patch)) > 1:
        raise InputError(
            f"the published format holds square images and patches only, not {config.signal} cut into {config.patch}."
        )
    names, narrow = encoder_names(config), predictor_names(ijepa.predictor.config)
    content = {
        "encoder": _publish(ijepa.context_encoder, names, prefix),
        "predictor": _publish(ijepa.predictor, narrow, prefix),
        "target_encoder": _publish(ijepa.target_encoder, names, prefix),
        "epoch": epoch,
    }
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, draft)
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error}.") from error


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


def _load(path: Path) -> Mapping[str, Any]:
    """The content of the file; only what is a PyTorch file is handed to PyTorch, and only data is taken from it."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LEGACY))
        zipped = zipfile.is_zipfile(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    if not zipped and head != _LEGACY:
        cut = head.startswith(b"PK\x03\x04")
        why = "the file ends too early: it was cut short; download it again" if cut else "it is no PyTorch file"
        raise InputError(f"{path} is not an I-JEPA checkpoint: {why}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _UNREADABLE as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(f"{path} cannot be read as a checkpoint of plain weights: {first[0]}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} should hold a mapping with `encoder`, and holds a {type(content).__name__}.")
    return content


def _section(content: Mapping[str, Any], name: str, where: str) -> State:
    """One network's tensors, the wrapper's prefix taken off."""
    section = content.get(name)
    if not isinstance(section, Mapping) or not section:
        found = ", ".join(sorted(map(str, content))[:8]) or "nothing"
        raise InputError(f"{where} is not an I-JEPA checkpoint: it has no `{name}` weights. It holds: {found}.")
    state: State = {}
    for key, tensor in section.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise InputError(f"`{name}` of {where} should hold weights only, and {key!r} is a {type(tensor).__name__}.")
        if key.removeprefix("module.") in state:
            raise InputError(f"`{name}` of {where} holds {key!r} both with and without the `module.` prefix.")
        state[key.removeprefix("module.")] = tensor.detach().to(torch.float32)
    return state


def _tensor(state: State, name: str, axes: int, where: str) -> Tensor:
    tensor = state.get(name)
    if tensor is None:
        raise InputError(f"{where} is not an I-JEPA network: it has no {name!r}.")
    if tensor.ndim != axes:
        raise InputError(f"{name!r} in {where} should have {axes} axes, and its shape is {tuple(tensor.shape)}.")
    return tensor


def _encoder_config(state: State, heads: int | None, where: str) -> EncoderConfig:
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
        **_stack(state, "blocks", width, where),
    )


def _predictor_config(state: State, encoder: EncoderConfig, heads: int | None, where: str) -> PredictorConfig:
    width = _tensor(state, "predictor_embed.weight", 2, where).shape[0]
    table = _tensor(state, "predictor_pos_embed", 3, where)
    if table.shape != (1, encoder.grid.size, width) or not is_sincos(table[0], encoder.grid):
        raise InputError(
            f"the position table of {where} (shape {tuple(table.shape)}) is not the fixed sine-cosine one of a "
            f"{encoder.grid.shape} grid and a width of {width}; no other is supported for a predictor."
        )
    return PredictorConfig(
        heads=_heads(heads or encoder.heads, width, "--predictor-heads", where),
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


def _rename(state: State, names: dict[str, str], where: str, keep_table: bool) -> State:
    """The state in our names and shapes: a convolution's kernel is the rows of our linear layer on patches."""
    check_names(set(state), set(names), where)
    ours = {names[name]: tensor for name, tensor in state.items()}
    table = ours.pop("table")
    if keep_table:
        ours["table"] = table[0]
    if ours["embed.weight"].ndim == 4:
        ours["embed.weight"] = ours["embed.weight"].flatten(1)
    return ours


def _publish(module: nn.Module, names: dict[str, str], prefix: str) -> State:
    ours = dict(module.state_dict()) | {"table": module.get_buffer("table")[None]}
    if isinstance(module, Encoder):
        config = module.config
        ours["embed.weight"] = ours["embed.weight"].reshape(config.width, config.channels, *config.patch)
    return {prefix + theirs: ours[name].detach().to("cpu", torch.float32).clone() for theirs, name in names.items()}

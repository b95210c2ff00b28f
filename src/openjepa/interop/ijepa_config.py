"""The ``config.json`` of transformers' ``IJepaModel``, and an encoder's architecture, both ways."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from openjepa.encoder import EncoderConfig
from openjepa.errors import InputError
from openjepa.interop.assembly import mlp_ratio

_OWN_TYPE = "openjepa_encoder"


def obstacle_to_transformers(config: EncoderConfig) -> str:
    """Why transformers' ``IJepaModel`` cannot hold an architecture; empty where it can."""
    if config.class_token:
        return "it has a class token, which an IJepaModel has not"
    axes = len(config.signal)
    return "" if axes == 2 else f"its signal has {axes} ax{'is' if axes == 1 else 'es'}, not two"


def to_config_json(config: EncoderConfig, facts: Mapping[str, Any], obstacle: str) -> dict[str, Any]:
    """The content of ``config.json``; what transformers has no place for stands under ``openjepa``."""
    own = {
        "signal": list(config.signal),
        "patch": list(config.patch),
        "positions": config.positions,
        "class_token": config.class_token,
        "preprocessing": dict(facts),
    }
    return {
        "architectures": ["Encoder" if obstacle else "IJepaModel"],
        "model_type": _OWN_TYPE if obstacle else "ijepa",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": config.norm_eps,
        "image_size": _one_or_all(config.signal),
        "patch_size": _one_or_all(config.patch),
        "num_channels": config.channels,
        "qkv_bias": config.qkv_bias,
        "torch_dtype": "float32",
        "openjepa": own,
    }


def _one_or_all(extents: tuple[int, ...]) -> int | list[int]:
    return extents[0] if len(extents) == 2 and len(set(extents)) == 1 else list(extents)


def _standard_config(content: Mapping[str, Any], where: str) -> EncoderConfig:
    """The architecture that a config of transformers describes; what it leaves out is as ``IJepaConfig`` has it."""
    if content.get("model_type") != "ijepa":
        raise InputError(f"{where} describes a {content.get('model_type')!r} model; only 'ijepa' can be read.")
    if content.get("hidden_act", "gelu") not in ("gelu", "gelu_python"):
        raise InputError(f"{where} asks for {content['hidden_act']!r}; only the exact GELU ('gelu') is supported.")
    eps = content.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or eps <= 0:
        raise InputError(f"layer_norm_eps in {where} should be a positive number and is {eps!r}.")
    width, heads = _whole(content, "hidden_size", 768, where), _whole(content, "num_attention_heads", 12, where)
    if width % heads or content.get("head_dim", width // heads) not in (None, width // heads):
        raise InputError(f"{where}: {heads} heads of {content.get('head_dim', 'equal')} width do not make {width}.")
    config = EncoderConfig(
        signal=_pair(content, "image_size", 224, where),
        patch=_pair(content, "patch_size", 16, where),
        channels=_whole(content, "num_channels", 3, where),
        width=width,
        depth=_whole(content, "num_hidden_layers", 12, where, least=0),
        heads=heads,
        mlp_ratio=mlp_ratio(_whole(content, "intermediate_size", 3072, where), width),
        qkv_bias=bool(content.get("qkv_bias", True)),
        norm_eps=eps,
    )
    return _with_grid(config, where)


def _own_config(content: Mapping[str, Any], own: Mapping[str, Any], where: str) -> EncoderConfig:
    """The architecture of a directory that transformers cannot read."""
    signal, patch = own.get("signal"), own.get("patch")
    if not all(isinstance(e, list) and e and all(isinstance(n, int) for n in e) for e in (signal, patch)):
        raise InputError(
            f"{where} should give `signal` and `patch` under `openjepa`, and has {signal!r} and {patch!r}."
        )
    config = _standard_config({**content, "model_type": "ijepa", "image_size": 1, "patch_size": 1}, where)
    shape = {"signal": tuple(signal or ()), "patch": tuple(patch or ())}
    return _with_grid(dataclasses.replace(config, **shape, class_token=own.get("class_token") is True), where)


def _with_grid(config: EncoderConfig, where: str) -> EncoderConfig:
    try:
        config.grid  # noqa: B018 - a property that refuses extents that are no multiples of the patch
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    return config


def _whole(content: Mapping[str, Any], name: str, default: int, where: str, *, least: int = 1) -> int:
    value = content.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        wanted = "a positive integer" if least else "0 or a positive integer"
        raise InputError(f"{name} in {where} should be {wanted} and is {value!r}.")
    return value


def _pair(content: Mapping[str, Any], name: str, default: int, where: str) -> tuple[int, int]:
    match content.get(name, default):
        case int(edge) if edge > 0:
            return edge, edge
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case other:
            raise InputError(f"{name} in {where} should be one or two positive integers and is {other!r}.")


def from_config_json(content: Mapping[str, Any], where: str) -> EncoderConfig:
    """The architecture in a ``config.json``, all but the kind of positions, which the weights show."""
    if content.get("model_type") == _OWN_TYPE:
        return _own_config(content, own_facts(content), where)
    return _standard_config(content, where)


def own_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """What openjepa has written into a ``config.json``; empty in somebody else's."""
    facts = content.get("openjepa")
    return facts if isinstance(facts, dict) else {}

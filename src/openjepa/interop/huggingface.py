"""Encoders as Hugging Face directories, both ways: config.json, model.safetensors, preprocessor_config.json.

``transformers.AutoModel.from_pretrained`` makes an ``IJepaModel`` of such a directory. Where transformers cannot hold
the architecture (a signal that has not two axes), the directory still loads here, and its README.md says so.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.interop.assembly import State, build_encoder, check_finite, check_names, is_sincos, mlp_ratio
from openjepa.interop.card import model_card
from openjepa.interop.folders import read_json, read_tensors, whole_folder, write_json, write_tensors
from openjepa.interop.image_processor import PreprocessingLike, assumed, describe, processor_config, read_processor

_OWN_TYPE = "openjepa_encoder"
_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
_LAYER = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attention.out",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.0",
    "output.dense": "mlp.2",
}
# transformers 5 has other names inside its modules than in its files; a directory may come with either.
_NEWER = {
    r"^layers\.": "encoder.layer.",
    r"\.attention\.([qkvo])_proj\.": lambda match: f".attention.{_NEWER_ATTENTION[match[1]]}.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}
_NEWER_ATTENTION = {"q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense"}
_NOT_OURS = ("pooler.", "classifier.", "embeddings.mask_token")


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """An encoder with what its directory says about it.

    Attributes:
        encoder: the network, in evaluation mode.
        preprocessing: ``size``, ``channels``, ``mean``, ``std`` (of values in [0, 1]); ``assumed`` is True where the
            directory says nothing.
        metadata: ``model_type``, ``written_by`` (openjepa or transformers), ``ignored`` (names of tensors that are no
            part of the encoder: a pooler, a classifier).
    """

    encoder: Encoder
    preprocessing: dict[str, Any]
    metadata: dict[str, Any]


def export(
    encoder: Encoder,
    directory: str | Path,
    *,
    preprocessing: PreprocessingLike | Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write ``encoder`` as a Hugging Face directory, whole or not at all; an earlier export there is replaced.

    Args:
        encoder: written in float32.
        directory: the folder to make.
        preprocessing: ``size``, ``channels``, ``mean`` and ``std``, as attributes or as keys.
        card: facts for README.md; see :func:`openjepa.interop.card.model_card`.

    Raises:
        InputError: ``directory`` holds something else, or cannot be written.
    """
    with whole_folder(Path(directory), _not_an_export) as draft:
        write_encoder(encoder, draft, preprocessing=preprocessing, card=card)


def write_encoder(
    encoder: Encoder,
    folder: Path,
    *,
    preprocessing: PreprocessingLike | Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of :func:`export` into ``folder``, which is there."""
    facts = dict(preprocessing) if isinstance(preprocessing, Mapping) else describe(preprocessing)
    config, obstacle = encoder.config, obstacle_to_transformers(encoder.config)
    if not len(facts["mean"]) == len(facts["std"]) == facts["channels"] == config.channels:
        raise InputError(f"the preprocessing {facts} does not fit an encoder of {config.channels} channels.")
    processor = {} if obstacle else processor_config(facts)
    write_json(folder / "config.json", _config_json(config, facts, obstacle))
    write_json(folder / "preprocessor_config.json", processor | {"openjepa": facts})
    write_tensors(folder / "model.safetensors", _to_huggingface(encoder))
    (folder / "README.md").write_text(model_card(config, facts, card or {}, obstacle), encoding="utf-8")


def load(directory: str | Path) -> LoadedEncoder:
    """Read a Hugging Face directory of an I-JEPA encoder: ours, or one that transformers has saved.

    Raises:
        InputError: no such directory, another model, missing or unexpected tensors, wrong shapes, damaged files.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder. Give the folder of an encoder, which holds config.json.")
    where = str(directory / "config.json")
    if not Path(where).is_file():
        raise InputError(f"{directory} is no encoder: it holds no config.json.")
    content = read_json(Path(where))
    given = content.get("openjepa")
    own = given if isinstance(given, dict) else {}
    config = _own_config(content, own, where) if content.get("model_type") == _OWN_TYPE else _config(content, where)
    tensors, ignored = _tensors(directory)
    state = _from_huggingface(tensors, config, str(directory))
    check_finite(state, str(directory))
    table = state.pop("table")
    sincos = is_sincos(table, config.grid) and own.get("positions") != "learned"
    config = dataclasses.replace(config, positions="sincos" if sincos else "learned")
    encoder = build_encoder(config, state if sincos else state | {"table": table}, str(directory)).eval()
    metadata = {
        "model_type": content["model_type"],
        "written_by": "openjepa" if own else "transformers",
        "ignored": ignored,
    }
    return LoadedEncoder(encoder=encoder, preprocessing=_read_facts(directory, config, own), metadata=metadata)


def obstacle_to_transformers(config: EncoderConfig) -> str:
    """Why transformers' ``IJepaModel`` cannot hold an architecture; empty where it can."""
    axes = len(config.signal)
    return "" if axes == 2 else f"its signal has {axes} ax{'is' if axes == 1 else 'es'}, not two"


def _config_json(config: EncoderConfig, facts: Mapping[str, Any], obstacle: str) -> dict[str, Any]:
    own = {
        "signal": list(config.signal),
        "patch": list(config.patch),
        "positions": config.positions,
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


def _config(content: Mapping[str, Any], where: str) -> EncoderConfig:
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
        depth=_whole(content, "num_hidden_layers", 12, where),
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
    config = _config({**content, "model_type": "ijepa", "image_size": 1, "patch_size": 1}, where)
    return _with_grid(dataclasses.replace(config, signal=tuple(signal or ()), patch=tuple(patch or ())), where)


def _with_grid(config: EncoderConfig, where: str) -> EncoderConfig:
    try:
        config.grid  # noqa: B018 - a property that refuses extents that are no multiples of the patch
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    return config


def _whole(content: Mapping[str, Any], name: str, default: int, where: str) -> int:
    value = content.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} in {where} should be a positive integer and is {value!r}.")
    return value


def _pair(content: Mapping[str, Any], name: str, default: int, where: str) -> tuple[int, int]:
    match content.get(name, default):
        case int(edge) if edge > 0:
            return edge, edge
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case other:
            raise InputError(f"{name} in {where} should be one or two positive integers and is {other!r}.")


def _names(config: EncoderConfig) -> dict[str, str]:
    """Name in the file to ours, for every tensor but those of queries, keys and values."""
    modules = {"embeddings.patch_embeddings.projection": "embed", "layernorm": "stack.norm"} | {
        f"encoder.layer.{i}.{theirs}": f"stack.blocks.{i}.{ours}"
        for i in range(config.depth)
        for theirs, ours in _LAYER.items()
    }
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}
    return {"embeddings.position_embeddings": "table"} | names


def _qkv(config: EncoderConfig) -> dict[str, list[str]]:
    """Our joint projections to the three in the file."""
    return {
        f"stack.blocks.{i}.attention.qkv.{kind}": [
            f"encoder.layer.{i}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")
        ]
        for i in range(config.depth)
        for kind in (("weight", "bias") if config.qkv_bias else ("weight",))
    }


def _to_huggingface(encoder: Encoder) -> State:
    config = encoder.config
    ours = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in encoder.state_dict().items()}
    ours["table"] = encoder.table.detach().to("cpu", torch.float32)[None]
    ours["embed.weight"] = ours["embed.weight"].reshape(config.width, config.channels, *config.patch)
    theirs = {name: ours[own] for name, own in _names(config).items()}
    for joint, parts in _qkv(config).items():
        theirs |= {name: part.clone() for name, part in zip(parts, ours[joint].chunk(3), strict=True)}
    return theirs


def _from_huggingface(theirs: State, config: EncoderConfig, where: str) -> State:
    """Our state dict, ``table`` included, from the tensors of a file."""
    names, joined = _names(config), _qkv(config)
    check_names(set(theirs), set(names) | {part for parts in joined.values() for part in parts}, where)
    table = theirs["embeddings.position_embeddings"]
    if table.shape != (1, config.grid.size, config.width):
        raise InputError(
            f"the position table in {where} is {tuple(table.shape)}; {config.signal} cut into {config.patch} at a "
            f"width of {config.width} needs {(1, config.grid.size, config.width)}."
        )
    kernel = theirs["embeddings.patch_embeddings.projection.weight"]
    if kernel.shape != (config.width, config.channels, *config.patch):
        raise InputError(
            f"the patch embedding in {where} is {tuple(kernel.shape)} and should be "
            f"{(config.width, config.channels, *config.patch)}."
        )
    ours = {own: theirs[name] for name, own in names.items()}
    ours |= {joint: torch.cat([theirs[part] for part in parts]) for joint, parts in joined.items()}
    return ours | {"table": table[0], "embed.weight": kernel.flatten(1)}


def _tensors(directory: Path) -> tuple[State, list[str]]:
    """The encoder's tensors of a directory in float32, from one file or several, and the names left out."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        found = read_tensors(directory / "model.safetensors")
    elif index.is_file():
        found = _shards(directory, read_json(index).get("weight_map"))
    else:
        raise InputError(
            f"{directory} holds no model.safetensors. Weights in other files (.bin) are not read: convert them."
        )
    state, ignored = {}, []
    for name, tensor in found.items():
        plain = name.removeprefix("ijepa.")
        if plain.startswith(_NOT_OURS):
            ignored.append(name)
            continue
        for pattern, older in _NEWER.items():
            plain = re.sub(pattern, older, plain)
        state[plain] = tensor.to(torch.float32)
    return state, sorted(ignored)


def _shards(directory: Path, weight_map: object) -> dict[str, Tensor]:
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{directory / 'model.safetensors.index.json'} has no usable `weight_map`.")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise InputError(f"{directory / 'model.safetensors.index.json'} points outside its folder: {file!r}.")
        tensors |= read_tensors(directory / file)
    return tensors


def _read_facts(directory: Path, config: EncoderConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    path = directory / "preprocessor_config.json"
    content = read_json(path) if path.is_file() else {}
    if len(config.signal) == 2 and any(not name.startswith("openjepa") for name in content):
        facts = read_processor(content, config, str(path))
        ours = content.get("openjepa")
        if isinstance(ours, dict) and ours.get("assumed"):
            facts["assumed"] = True
        return facts
    facts = own.get("preprocessing")
    return dict(facts) if isinstance(facts, dict) else assumed(config)


def _not_an_export(directory: Path) -> str | None:
    """Why an existing folder may not be replaced: only our own exports (or an empty folder) may."""
    if not directory.is_dir():
        return "it is a file"
    found = {entry.name for entry in directory.iterdir()}
    if not found:
        return None
    if found - _FILES:
        return f"it holds files that are no part of an encoder ({', '.join(sorted(found - _FILES)[:4])})"
    config = directory / "config.json"
    if not config.is_file() or "openjepa" not in read_json(config):
        return "it is not an encoder that openjepa has written"
    return None

"""The weights of transformers' ``IJepaModel`` in its files, and an encoder's, both ways."""

import re
from pathlib import Path

import torch
from torch import Tensor

from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.interop.assembly import State, check_names
from openjepa.interop.folders import read_json, read_tensors

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


def _names(config: EncoderConfig) -> dict[str, str]:
    """Name in the file to ours, for every tensor but those of queries, keys and values."""
    modules = {"embeddings.patch_embeddings.projection": "embed", "layernorm": "stack.norm"} | {
        f"encoder.layer.{i}.{theirs}": f"stack.blocks.{i}.{ours}"
        for i in range(config.depth)
        for theirs, ours in _LAYER.items()
    }
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}
    if config.class_token:
        names["embeddings.cls_token"] = "class_token"
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


def to_huggingface(encoder: Encoder) -> State:
    """The tensors of an encoder in float32, as transformers' files name them."""
    config = encoder.config
    ours = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in encoder.state_dict().items()}
    ours["table"] = encoder.table.detach().to("cpu", torch.float32)[None]
    ours["embed.weight"] = ours["embed.weight"].reshape(config.width, config.channels, *config.patch)
    theirs = {name: ours[own] for name, own in _names(config).items()}
    for joint, parts in _qkv(config).items():
        theirs |= {name: part.clone() for name, part in zip(parts, ours[joint].chunk(3), strict=True)}
    return theirs


def from_huggingface(theirs: State, config: EncoderConfig, where: str) -> State:
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


def read_weights(directory: Path) -> tuple[State, list[str]]:
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

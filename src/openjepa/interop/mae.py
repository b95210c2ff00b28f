"""The published MAE checkpoint format (`.pth`), both ways: the encoder, with its class token where there is one.

A file holds the state dict ``model``: the encoder's tensors under the names that I-JEPA's files have, ``cls_token``
with the first row of ``pos_embed`` as its position, and, where the whole pre-training was kept, a decoder, which is
left out: ours has no class token to attend to. Source: He et al. 2022 (arXiv 2111.06377), app. A.1, and the names of
published weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openjepa.encoder import Encoder
from openjepa.interop import huggingface
from openjepa.interop.assembly import build_encoder, check_finite
from openjepa.interop.folders import whole_folder, write_json
from openjepa.interop.image_processor import assumed
from openjepa.interop.meta import load_file, section
from openjepa.interop.meta_layout import (
    check_eps,
    check_writable,
    encoder_config,
    encoder_names,
    from_published,
    save_published,
    to_published,
)

_DECODER = ("decoder_", "mask_token")


def is_mae(content: Mapping[str, Any]) -> bool:
    """Whether a loaded file is of this format: one state dict called ``model``, and not I-JEPA's three."""
    model = content.get("model")
    return isinstance(model, Mapping) and any(str(name).endswith("patch_embed.proj.weight") for name in model)


def read(path: str | Path, *, heads: int | None = None) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder of a published MAE checkpoint in evaluation mode, and the names of the tensors left out.

    The class token takes part in the attention and is no part of the features, whose average the paper's "global
    pooling" is. It holds its own position: the two are only ever used together.

    Args:
        path: the `.pth` file; nothing in it is run (``weights_only``).
        heads: None takes the published number for the width.

    Raises:
        InputError: no checkpoint, damaged, not MAE's, or heads that cannot be told; the message names what.
    """
    return parse(load_file(Path(path)), heads=heads, where=str(path))


def parse(
    content: Mapping[str, Any], *, heads: int | None = None, where: str = "the checkpoint"
) -> tuple[Encoder, tuple[str, ...]]:
    """What :func:`read` makes of the loaded mapping."""
    every = section(content, "model", where)
    left = tuple(sorted(name for name in every if name.startswith(_DECODER)))
    state = {name: tensor for name, tensor in every.items() if name not in left}
    token = state.pop("cls_token", None)
    table = state.get("pos_embed")
    if token is not None and table is not None and table.ndim == 3 and table.shape[1] > 1:
        token = token + table[:, :1]
        state["pos_embed"] = table[:, 1:]
    config = replace(encoder_config(state, heads, f"`model` of {where}"), class_token=token is not None)
    names = encoder_names(replace(config, class_token=False))
    ours = from_published(state, names, f"`model` of {where}", config.positions == "learned")
    if token is not None:
        ours["class_token"] = token
    check_finite(ours, where)
    return build_encoder(config, ours, where).eval(), left


def write(encoder: Encoder, path: str | Path) -> None:
    """Write an encoder as a published MAE checkpoint.

    One without a class token is written without ``cls_token`` and its row of ``pos_embed``: timm's models with
    ``class_token=False`` read it, MAE's own code does not. The number of heads is not in the format.

    Raises:
        InputError: the file exists, or the format cannot hold the architecture (it knows square images and patches).
    """
    path, config = Path(path), encoder.config
    check_writable(path, config)
    check_eps(config)
    state = to_published(encoder, encoder_names(config), "")
    if encoder.class_token is not None:
        token = encoder.class_token.detach().to("cpu", torch.float32).clone()
        # The position of the class token is a row of zeros in the published sine-cosine tables; it is in the token.
        state = {"cls_token": token, **state, "pos_embed": torch.cat([torch.zeros_like(token), state["pos_embed"]], 1)}
    save_published(path, {"model": state})


def import_mae(content: Mapping[str, Any], path: Path, out: Path, *, heads: int | None = None) -> dict[str, Any]:
    """Turn a loaded checkpoint into a folder with ``encoder/`` and ``mae.json``; returns what was found.

    Raises:
        InputError: ``out`` exists, or the checkpoint cannot be used; nothing is written then.
    """
    with whole_folder(out) as draft:
        encoder, left = parse(content, heads=heads, where=str(path))
        config = encoder.config
        facts = {
            "checkpoint": path.name,
            "format": "MAE",
            "class token": "kept: it takes part in the attention, and is no part of the features"
            if config.class_token
            else "none",
            "grid": list(config.grid.shape),
            "heads": "given" if heads is not None else "the published number for this width",
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "left out": f"{len(left)} tensors of the decoder" if left else "nothing",
        }
        card = {
            "name": f"MAE encoder from {path.name}",
            "method": "mae",
            "summary": f"The encoder of the checkpoint {path.name}, weights unchanged.",
            "notes": ["The checkpoint's own licence goes on to hold for these weights."],
        }
        (draft / "encoder").mkdir()
        huggingface.write_encoder(encoder, draft / "encoder", preprocessing=assumed(config), card=card)
        write_json(draft / "mae.json", facts)
    return facts

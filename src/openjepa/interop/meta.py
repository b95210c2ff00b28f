"""The published I-JEPA checkpoint format (`.pth.tar`), both ways.

A file holds the state dicts ``encoder`` (the context encoder), ``target_encoder`` and ``predictor``, their names with
or without a ``module.`` prefix, beside the state of a training run (``opt``, ``epoch``, ...), which is no part of the
weights. Position tables that are the sine-cosine ones within 1e-5 are computed anew, others are kept as they are. All
of the architecture shows in the weights but the number of heads: Assran et al. 2023, app. A.1 gives those.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.interop.assembly import State, build_encoder, build_predictor, check_finite, join_ijepa
from openjepa.interop.meta_layout import (
    check_eps,
    check_writable,
    encoder_config,
    encoder_names,
    from_published,
    predictor_config,
    predictor_names,
    save_published,
    to_published,
)
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError)


@dataclass(frozen=True, kw_only=True)
class ReferenceCheckpoint:
    """What a published checkpoint holds, in this library's names.

    Attributes:
        encoder_config, predictor_config: the architecture, as the weights show it.
        context, target, predictor: state dicts of the two encoders and of the predictor, float32; they may be mapped
            from the file, which must then stay in place.
        facts: plain values beside the weights (epoch, batch size, ...).
        ignored: names of what is no weight and was not read (the optimiser's state, ...).
        source: where it came from, for messages.
    """

    encoder_config: EncoderConfig
    predictor_config: PredictorConfig
    context: State
    target: State
    predictor: State
    facts: dict[str, int | float | str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    source: str = "the checkpoint"

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
            build_encoder(encoder, context, f"the context encoder of {self.source}"),
            build_encoder(encoder, target, f"the target encoder of {self.source}"),
            build_predictor(
                self.predictor_config,
                predictor,
                f"the predictor of {self.source}",
                grid=encoder.grid,
                inputs=width,
                outputs=width,
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
    checkpoint = parse(load_file(Path(path)), heads=heads, predictor_heads=predictor_heads, where=where)
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
    context, target, predictor = (section(content, name, where) for name in ("encoder", "target_encoder", "predictor"))
    config = encoder_config(target, heads, f"`target_encoder` of {where}")
    other = encoder_config(context, heads, f"`encoder` of {where}")
    # The published code averages the target's position table along with its weights, which rounds it again and again.
    learned = "learned" in (config.positions, other.positions)
    config, other = (replace(each, positions="learned" if learned else "sincos") for each in (config, other))
    if other != config:
        raise InputError(f"{where} holds two encoders of different shape: {other} and {config}.")
    narrow = predictor_config(predictor, config, predictor_heads, f"`predictor` of {where}")
    rest = {name: value for name, value in content.items() if name not in ("encoder", "target_encoder", "predictor")}
    checkpoint = ReferenceCheckpoint(
        encoder_config=config,
        predictor_config=narrow,
        context=from_published(context, encoder_names(config), f"`encoder` of {where}", learned),
        target=from_published(target, encoder_names(config), f"`target_encoder` of {where}", learned),
        predictor=from_published(predictor, predictor_names(narrow), f"`predictor` of {where}", False),
        facts={name: value for name, value in rest.items() if isinstance(value, int | float | str)},
        ignored=tuple(name for name, value in rest.items() if not isinstance(value, int | float | str)),
        source=where,
    )
    checkpoint.to_ijepa(copy=False)  # refuses wrong shapes
    return checkpoint


def write(ijepa: IJEPA, path: str | Path, *, epoch: int = 0, prefix: str = "module.") -> None:
    """Write an objective as a published checkpoint: weights and position tables, no optimiser state.

    The number of heads and the epsilon of the norms are not in the format: the reader has to know the former, and the
    latter has to be the published 1e-6.

    Raises:
        InputError: the file exists, or the format cannot hold the architecture (it knows square images and patches, no
            class token, and a predictor of one layer).
    """
    path = Path(path)
    config = ijepa.target_encoder.config
    check_writable(path, config)
    if config.class_token:
        raise InputError("the published format has no place for a class token, and without it this encoder is another.")
    if ijepa.config.layers > 1:
        raise InputError(
            f"the published format holds a predictor of one layer, and this one predicts {ijepa.config.layers} "
            f"(target_depths {ijepa.config.target_depths})."
        )
    for part in (config, ijepa.predictor.config):
        check_eps(part)
    names, narrow = encoder_names(config), predictor_names(ijepa.predictor.config)
    content = {
        "encoder": to_published(ijepa.context_encoder, names, prefix),
        "predictor": to_published(ijepa.predictor, narrow, prefix),
        "target_encoder": to_published(ijepa.target_encoder, names, prefix),
        "epoch": epoch,
    }
    save_published(path, content)


def load_file(path: Path) -> Mapping[str, Any]:
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
        raise InputError(f"{path} is not a checkpoint: {why}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:  # its message advises to run what the file holds
        raise InputError(
            f"{path} cannot be read as a checkpoint of plain weights: it is damaged, or holds Python objects, which are"
            " not loaded since that would run code from the file."
        ) from error
    except _UNREADABLE as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(f"{path} cannot be read as a checkpoint of plain weights: {first[0]}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} should hold a mapping with `encoder`, and holds a {type(content).__name__}.")
    return content


def section(content: Mapping[str, Any], name: str, where: str) -> State:
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

"""Modules made from loaded weights, without drawing initial ones first: a giant model takes its memory only once."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.encoder import Encoder, EncoderConfig, Predictor, PredictorConfig
from openjepa.errors import InputError
from openjepa.grid import TokenGrid, sincos_positions
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig

SAME_TABLE = 1e-5
"""Largest absolute difference between two position tables that are the same up to rounding."""

State = dict[str, Tensor]
Network = TypeVar("Network", bound=torch.nn.Module)


def build_encoder(config: EncoderConfig, state: Mapping[str, Tensor], where: str) -> Encoder:
    """An encoder that holds the tensors of ``state`` themselves (names as in ``Encoder.state_dict``)."""
    encoder = _shell(lambda: Encoder(config), where)
    check_tensors(state, expected_shapes(encoder), where)
    encoder.load_state_dict(dict(state), assign=True)
    if config.positions == "sincos":
        encoder.table = sincos_positions(config.grid, config.width)
    return encoder


def build_predictor(
    config: PredictorConfig, state: Mapping[str, Tensor], where: str, *, grid: TokenGrid, inputs: int, outputs: int
) -> Predictor:
    """A predictor that holds the tensors of ``state`` themselves (names as in ``Predictor.state_dict``)."""
    predictor = _shell(lambda: Predictor(config, grid=grid, inputs=inputs, outputs=outputs), where)
    check_tensors(state, expected_shapes(predictor), where)
    predictor.load_state_dict(dict(state), assign=True)
    predictor.table = sincos_positions(grid, config.width)
    return predictor


def join_ijepa(context: Encoder, target: Encoder, predictor: Predictor, config: IJEPAConfig | None = None) -> IJEPA:
    """An I-JEPA objective made of three existing networks.

    Raises:
        ValueError: ``target_depths`` beyond the encoders'.
    """
    config = config or IJEPAConfig()
    config.check_depths(context.config)
    # Built without blocks, then given the networks: nothing large is drawn only to be thrown away.
    shell = dataclasses.replace(context.config, depth=0)
    as_many = dataclasses.replace(config, target_depths=(0,) * len(config.target_depths))
    objective = IJEPA(shell, dataclasses.replace(predictor.config, depth=0), as_many)
    objective.config = config
    objective.context_encoder = context
    objective.target_encoder = target.requires_grad_(False)
    objective.predictor = predictor
    return objective


def _shell(build: Callable[[], Network], where: str) -> Network:
    """A network without memory of its own; what its settings make impossible is the file's fault."""
    try:
        with torch.device("meta"):
            return build()
    except ValueError as error:
        raise InputError(f"{where} describes a network that cannot be built: {error}.") from error


def expected_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every saved tensor of ``module``."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_names(found: set[str], expected: set[str], where: str) -> None:
    """Refuse missing and unexpected tensors by name: every tensor is used, or the file is not what it seems."""
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing or unknown:
        parts = [f"{what}: {_some(names)}" for what, names in (("missing", missing), ("unexpected", unknown)) if names]
        raise InputError(f"{where} does not hold the weights of an I-JEPA network; {'; '.join(parts)}.")


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse missing and unexpected tensors, and wrong shapes."""
    check_names(set(state), set(expected), where)
    wrong = [
        f"{name} is {tuple(state[name].shape)} and should be {shape}"
        for name, shape in expected.items()
        if tuple(state[name].shape) != shape
    ]
    if wrong:
        raise InputError(f"{where} has tensors of another shape than its architecture asks for: {_some(wrong)}.")


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are not finite numbers, by name."""
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise InputError(f"{where} holds weights that are not finite numbers: {_some(bad)}.")


def is_sincos(table: Float[Tensor, "N D"], grid: TokenGrid) -> bool:
    """Whether a position table is the fixed sine-cosine one, up to rounding."""
    if table.shape[1] < 2 * len(grid.shape):
        return False
    return bool((table - sincos_positions(grid, table.shape[1])).abs().max() <= SAME_TABLE)


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio that gives back exactly ``hidden`` when it is multiplied by ``width`` and cut to an integer."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

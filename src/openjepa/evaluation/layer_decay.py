"""Learning rates that shrink from layer to layer and over the steps (ELECTRA, Clark et al. 2020; MAE, app. A.2)."""

import math
import re

from torch import nn

_BLOCK = re.compile(r"encoder\.stack\.blocks\.(\d+)\.")


def layer_of(name: str, depth: int) -> int:
    """A parameter's layer: 0 for patch embedding and class token, i + 1 for block i, ``depth`` + 1 for the rest.

    The rest is the final norm and the head. Raises ValueError for a name that is none of these.
    """
    block = _BLOCK.match(name)
    if block:
        return int(block[1]) + 1
    if name.startswith("encoder.embed.") or name == "encoder.class_token":
        return 0
    if name.startswith(("encoder.stack.norm.", "head.")):
        return depth + 1
    raise ValueError(f"the parameter {name} belongs to no layer that fine-tuning knows")


def parameter_groups(
    model: nn.Module, depth: int, *, rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, object]]:
    """AdamW's groups: the layer's rate in ``lr`` and its share of the head's in ``scale``; vectors are not decayed."""
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((layer_of(name, depth), parameter.ndim == 2), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "lr": rate * scale, "weight_decay": weight_decay if matrix else 0.0}
        for (layer, matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
        for scale in [layer_decay ** (depth + 1 - layer)]
    ]


def share_of_rate(step: int, steps: int, warmup: float) -> float:
    """The share of the highest rate at ``step`` (from 0): linear over the share ``warmup``, then a cosine to 0."""
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

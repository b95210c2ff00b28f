"""Learning rates that shrink from layer to layer and over the steps (ELECTRA, Clark et al. 2020; MAE, app. A.2)."""

import math
from collections.abc import Iterator

from torch import nn


def layers(encoder: nn.Module) -> tuple[dict[str, int], int]:
    """The layer of each parameter by its name, and the number of blocks, L.

    0 is what comes before the blocks (patch embedding, class token, positions), i + 1 is block i, L + 1 what comes
    after them, as the final norm. The blocks are the members of lists of modules of one class, of one list after the
    other where there are several (the stages of a convolutional network); what stands between two lists belongs to the
    block before it. Without any, all is L + 1.
    """
    prefixes = list(_blocks(encoder))
    names = [name for name, _ in encoder.named_parameters()]
    own = [next((i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), None) for name in names]
    last = max((place for place, block in enumerate(own) if block is not None), default=-1)
    found, layer = {}, 0
    for place, (name, block) in enumerate(zip(names, own, strict=True)):
        layer = len(prefixes) + 1 if place > last else layer if block is None else block + 1
        found[name] = layer
    return found, len(prefixes)


def _blocks(module: nn.Module, within: str = "") -> Iterator[str]:
    """The beginnings of the names of the parameters of each block."""
    for name, child in module.named_children():
        path = f"{within}{name}."
        if _is_list_of_blocks(child):
            yield from (f"{path}{member}." for member, _ in child.named_children())
        else:
            yield from _blocks(child, path)


def _is_list_of_blocks(module: nn.Module) -> bool:
    members = list(module.children())
    least = 1 if isinstance(module, nn.ModuleList) else 2
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(members) >= least
        and len({type(member) for member in members}) == 1
        and all(any(member.children()) for member in members)
    )


def parameter_groups(
    encoder: nn.Module, head: nn.Module, *, rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, object]]:
    """AdamW's groups: the layer's rate in ``lr`` and its share of the head's in ``scale``; vectors, tokens and tables
    of positions are not decayed."""
    own, depth = layers(encoder)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for module in (encoder, head):
        for name, parameter in module.named_parameters():
            matrix = parameter.ndim > 1 and name.rpartition(".")[2] == "weight"
            layer = own[name] if module is encoder else depth + 1
            groups.setdefault((layer, matrix), []).append(parameter)
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

"""Noise on the device that uses it, a pure function of :attr:`Masks.keys`: no generator that has a state to keep."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# SplitMix64 (see draws.py), as signed 64-bit numbers: torch has no arithmetic on unsigned ones on every device.
_GOLDEN, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniform(keys: Int64[Tensor, "R"], stream: int, count: int) -> Float[Tensor, "R n"]:
    """``count`` uniform numbers in (0, 1] for each key; ``stream`` names the use."""
    place = torch.arange(count, device=keys.device)
    x = _mix(_mix(keys[:, None] * _GOLDEN + stream) + place * _GOLDEN)
    return ((x >> 40) & (2**24 - 1)).float().add_(0.5).mul_(2.0**-24)


def gaussian(keys: Int64[Tensor, "R"], stream: int, count: int) -> Float[Tensor, "R n"]:
    """``count`` normal numbers (mean 0, standard deviation 1) for each key, from ``stream`` and the one after it.

    Source: Box and Muller 1958.
    """
    radius = (-2 * uniform(keys, stream, count).log()).sqrt()
    return radius * (2 * math.pi * uniform(keys, stream + 1, count)).cos()


def _mix(x: Int64[Tensor, "*R"]) -> Int64[Tensor, "*R"]:
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    return x ^ ((x >> 31) & (2**33 - 1))

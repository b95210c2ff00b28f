"""Random numbers as a pure function of keys, so that nothing in a run depends on a generator's state.

Order, crops and masks are functions of (seed, stream, epoch, sample). A resumed run, another number of
workers or of processes therefore draw the same numbers. The generator is the SplitMix64 finaliser (Steele, Lea
and Flood, OOPSLA 2014), applied once for each key.
"""

import zlib
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(stream: str, *keys: Any) -> UInt64[np.ndarray, "..."]:
    """64 random bits for every combination of ``keys`` (integers or integer arrays, broadcast together).

    ``stream`` names the use, so that crops and masks of one sample are independent.
    """
    state = np.atleast_1d(np.asarray(zlib.crc32(stream.encode()), np.uint64))
    with np.errstate(over="ignore"):
        for key in keys:
            state = _mix(state * _GOLDEN + np.asarray(key).astype(np.uint64) + _GOLDEN)
    return state


def uniform(stream: str, *keys: Any) -> Float64[np.ndarray, "..."]:
    """Uniform numbers in [0, 1), one for every combination of the broadcast ``keys``."""
    return (bits(stream, *keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, stream: str, *keys: int) -> np.ndarray:
    """A permutation of ``range(count)`` (int64), a function of the keys."""
    return np.argsort(bits(stream, *keys, np.arange(count)), kind="stable")

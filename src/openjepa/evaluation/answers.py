"""Which test images were answered rightly, as rows of ``evaluation.json`` keep it: bits, packed, in base 64.

By them runs that were judged apart can be compared image by image.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64


def packed(right: Bool[np.ndarray, "n *_K"], worth: int | float = 1) -> dict[str, Any]:
    """The answers to n images (``times`` ones to each) as JSON values, with what an image is worth in an interval
    (:mod:`openjepa.evaluation.intervals`)."""
    bits = base64.b64encode(np.packbits(right.ravel()).tobytes()).decode("ascii")
    return {"images": len(right), "times": right.size // len(right), "worth": worth, "right": bits}


def shares(kept: Mapping[str, Any]) -> Float64[np.ndarray, "n"]:
    """The share of right answers to each image, of what :func:`packed` made."""
    bits = np.frombuffer(base64.b64decode(kept["right"]), np.uint8)
    right = np.unpackbits(bits, count=kept["images"] * kept["times"])
    return right.reshape(kept["images"], kept["times"]).mean(1)

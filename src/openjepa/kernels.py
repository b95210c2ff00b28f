"""Linear layers and softmax in bfloat16 on a CPU, in fewer passes over memory; elsewhere they are PyTorch's own."""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# PyTorch's softmax in bfloat16 takes 32 numbers at once, or 16, and what is left of a row one by one: beyond so many a
# longer row is the faster one (benchmarks/README.md, "Which limit stops the step").
_LANES, _FEW = 32, 11


class Linear(nn.Linear):
    """PyTorch's linear layer; where oneDNN makes its product in bfloat16 and nobody asks for a gradient, the bias (and
    GELU) are added as that is written.

    PyTorch writes the bias to every row beforehand, and reads and writes the result again for GELU. With a gradient it
    is left as it is: a backward pass in Python cost two replicas more than it brought (benchmarks/README.md).
    """

    def forward(self, input: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """The layer, in the precision of autocast where that is on."""
        return self._onednn(input, "none") if _in_onednn(input) else super().forward(input)

    def gelu(self, input: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """GELU of the layer, which need not be written down in between."""
        return self._onednn(input, "gelu") if _in_onednn(input) else F.gelu(super().forward(input))

    def _onednn(self, input: Tensor, last: str) -> Tensor:
        cast = (each if each is None else each.to(torch.bfloat16) for each in (input, self.weight, self.bias))
        return torch.ops.mkldnn._linear_pointwise(*cast, last, [], "none")


def padding(keys: Float[Tensor, "*B N E"]) -> int:
    """How many tokens to add to the N so that a softmax over them is at its fastest."""
    if keys.device.type != "cpu" or keys.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return 0
    tokens = keys.shape[-2]
    left = tokens % _LANES
    return _LANES - left if left > _FEW and left != _LANES // 2 else 0


def padded_softmax(scores: Float[Tensor, "R Q M"], tokens: int) -> Float[Tensor, "R Q M"]:
    """Softmax over the first ``tokens`` of M; the others get 0, and lose their ``scores``."""
    return _PaddedSoftmax.apply(scores, tokens)


@cache
def _has_onednn() -> bool:
    has = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _in_onednn(x: Tensor) -> bool:
    """Whether products with ``x`` are oneDNN's to make, in bfloat16 and without a gradient."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if x.dtype not in (torch.bfloat16, torch.float32):
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.bfloat16 and x.numel() > 0 and torch.backends.mkldnn.enabled and _has_onednn()


class _PaddedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, tokens: int) -> Tensor:
        scores[..., tokens:] = float("-inf")
        weights = torch._softmax(scores, -1, False)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx, *slopes: Tensor) -> tuple[Tensor, None]:
        (slope,), (weights,) = slopes, ctx.saved_tensors
        return torch._softmax_backward_data(slope, weights, -1, weights.dtype), None

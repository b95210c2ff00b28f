"""Linear layers and softmax in bfloat16 on a CPU, in fewer passes over memory; elsewhere they are PyTorch's own."""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# PyTorch's softmax in bfloat16 takes 32 numbers at once, or 16, and what is left of a row one by one: beyond so many a
# longer row is the faster one (benchmarks/README.md, "Which limit stops the step").
LANES, _FEW = 32, 11


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


def softmax(scores: Float[Tensor, "*R Q N"]) -> Float[Tensor, "*R Q N"]:
    """Softmax over the N, in the precision of the scores."""
    more = padding(scores)
    return _PaddedSoftmax.apply(scores, more) if more else scores.softmax(-1, dtype=scores.dtype)


def padding(scores: Float[Tensor, "*R Q N"]) -> int:
    """How many numbers to add to the N so that a softmax over them is at its fastest."""
    if scores.device.type != "cpu" or scores.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return 0
    left = scores.shape[-1] % LANES
    return LANES - left if left > _FEW and left != LANES // 2 else 0


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
    def forward(ctx, scores: Tensor, more: int) -> Tensor:
        weights = torch._softmax(F.pad(scores, (0, more), value=float("-inf")), -1, False)
        ctx.save_for_backward(weights)
        ctx.more = more
        return weights[..., :-more]

    @staticmethod
    def backward(ctx, *slopes: Tensor) -> tuple[Tensor, None]:
        (slope,), (weights,) = slopes, ctx.saved_tensors
        slope = F.pad(slope, (0, ctx.more))
        return torch._softmax_backward_data(slope, weights, -1, weights.dtype)[..., : -ctx.more], None

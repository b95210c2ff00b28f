"""Linear layers and softmax in bfloat16 on a CPU, in fewer passes over memory; elsewhere they are PyTorch's own."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# PyTorch's softmax in bfloat16 takes 32 numbers at once, or 16, and what is left of a row one by one: beyond so many a
# longer row is the faster one (benchmarks/README.md, "Which limit stops the step").
_LANES, _FEW = 32, 11


class Linear(nn.Linear):
    """PyTorch's linear layer, with the bias (and GELU) inside the product where oneDNN makes it in bfloat16."""

    def forward(self, input: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """The layer, in the precision of autocast where that is on."""
        return linear(input, self.weight, self.bias)

    def gelu(self, input: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """GELU of the layer, which need not be written down in between where nobody asks for a gradient."""
        if torch.is_grad_enabled() or not _in_onednn(input):
            return F.gelu(self(input))
        return _onednn(*_cast(input, self.weight, self.bias), gelu=True)


def linear(
    x: Float[Tensor, "*N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*N O"]:
    """``F.linear``; in bfloat16 on a CPU by oneDNN, which adds the bias as it writes the product.

    PyTorch writes the bias to every row, and then adds the product to that: at 96 features to 384 half as long again.
    """
    if not _in_onednn(x):
        return F.linear(x, weight, bias)
    cast = _cast(x, weight, bias)
    return _Linear.apply(*cast) if torch.is_grad_enabled() else _onednn(*cast)


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
    """Whether products with ``x`` are oneDNN's to make, in bfloat16."""
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float32) or torch.compiler.is_compiling():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.bfloat16 and x.numel() > 0 and torch.backends.mkldnn.enabled and _has_onednn()


def _cast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """All in bfloat16, as autocast would have them."""
    return tuple(each if each is None else each.to(torch.bfloat16) for each in tensors)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    if gelu:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (slope,), (x, weight) = slopes, ctx.saved_tensors
        rows, slopes_of_rows = x.flatten(0, -2), slope.flatten(0, -2)
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = (slopes_of_rows @ weight).view_as(x)
        if ctx.needs_input_grad[1]:
            # The same product either way; with the fewer features on its left it is up to a fifth faster.
            wide = weight.shape[0] > weight.shape[1]
            to_weight = (rows.t() @ slopes_of_rows).t() if wide else slopes_of_rows.t() @ rows
        if ctx.needs_input_grad[2]:
            to_bias = slopes_of_rows.sum(0)
        return to_x, to_weight, to_bias


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

"""A pre-norm transformer (Dosovitskiy et al. 2021; Vaswani et al. 2017): attention, block, stack, and nothing else."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openjepa.kernels import Linear, softmax

# On a CPU PyTorch's fused attention is slower in bfloat16 than plain matrix products, most of all in its backward pass;
# in float32 it is faster at most lengths (benchmarks/attention.py). Plain attention keeps its weights, which grow with
# the square of the tokens: from this many on it asks in parts, whose weights are computed again for the gradient.
PLAIN_ATTENTION_TOKENS = 400
_ASKING = 256


def attention_path(device: str, dtype: torch.dtype, tokens: int) -> str:
    """``plain`` (matrix products, softmax), ``parts`` (the same for some queries at a time, nothing kept) or ``fused``
    (scaled_dot_product_attention), whichever is the fastest of those that memory allows."""
    if device != "cpu" or dtype != torch.bfloat16:
        return "fused"
    return "plain" if tokens <= PLAIN_ATTENTION_TOKENS else "parts"


def attention(
    q: Float[Tensor, "B H Q E"],
    k: Float[Tensor, "B H N E"],
    v: Float[Tensor, "B H N E"],
    valid: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H Q E"]:
    """Softmax attention of H heads of E features; tokens that are not ``valid`` are not attended to."""
    seen = None if valid is None else valid[:, None, None, :]
    path = attention_path(q.device.type, q.dtype, k.shape[2])
    if path == "fused":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    if path == "plain":
        return _plain(q, k, v, seen)
    parts = (
        checkpoint(_plain, part, k, v, seen, use_reentrant=False, preserve_rng_state=False)
        for part in q.split(_ASKING, 2)
    )
    return torch.cat(list(parts), 2)


def _plain(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    rows = q.shape[:2]
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    # Scaled inside the product, which otherwise takes a pass over the queries and another copy of them.
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    if seen is not None:
        scores = scores.unflatten(0, rows).masked_fill(~seen, float("-inf")).flatten(0, 1)
    return (softmax(scores) @ v).unflatten(0, rows)


def _varlen(projected: Tensor, features: int) -> Callable[..., Any] | None:
    """PyTorch's attention of rows of different lengths, where its documentation has it for heads of ``features``."""
    if projected.device.type != "cuda" or projected.dtype not in (torch.bfloat16, torch.float16):
        return None
    if torch.version.hip or torch.cuda.get_device_capability(projected.device) < (8, 0):
        return None
    if features % 8 or features > 256:
        return None
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


class Packing:
    """Rows of different lengths, one after the other without padding.

    Args:
        packed: the places of the tokens that are there, rising, in the flattened B * N places of the padded rows.
        rows: B.
        longest: N.
    """

    def __init__(self, packed: Int[Tensor, "L"], rows: int, longest: int) -> None:
        self.packed, self.rows, self.longest = packed, rows, longest
        self.valid = packed.new_zeros(rows * longest, dtype=torch.bool).index_fill(0, packed, True).view(rows, longest)
        self.ends = self.valid.sum(1).cumsum(0)

    def pack(self, x: Float[Tensor, "B N *D"]) -> Float[Tensor, "L *D"]:
        """The tokens that are there."""
        return _Pick.apply(x.flatten(0, 1), self.packed)

    def unpack(self, x: Float[Tensor, "L *D"]) -> Float[Tensor, "B N *D"]:
        """Rows padded with zeros."""
        return _Place.apply(x, self.packed, self.rows * self.longest).unflatten(0, (self.rows, self.longest))

    def last(self, x: Float[Tensor, "L *D"], count: int) -> Float[Tensor, "Q *D"]:
        """The last ``count`` tokens of every row, none of which may be padding."""
        return _Pick.apply(x, (self.ends[:, None] + torch.arange(-count, 0, device=x.device)).flatten())

    def attention(
        self, asking: Float[Tensor, "Q D"] | None, projected: Float[Tensor, "L P"], heads: int
    ) -> Float[Tensor, "Q H E"]:
        """Every token asks all of its row; or, where queries are given apart, only the last Q / B of every row.

        ``projected`` are keys and values, side by side, behind queries where ``asking`` is None.
        """
        varlen = _varlen(projected, projected.shape[1] // (3 if asking is None else 2) // heads)
        if varlen is not None:
            q, k, v = _heads(asking, projected, heads)
            starts = F.pad(self.ends, (1, 0)).int()
            if asking is None:
                return varlen(q, k, v, starts, starts, self.longest, self.longest)
            each = len(asking) // self.rows
            begins = torch.arange(0, len(q) + 1, each, device=q.device, dtype=torch.int32)
            return varlen(q, k, v, begins, starts, each, self.longest)
        # Elsewhere attention alone is padded, a small part of a layer's work.
        queries = None if asking is None else asking.unflatten(0, (self.rows, -1))
        q, k, v = (part.transpose(1, 2) for part in _heads(queries, self.unpack(projected), heads))
        mixed = attention(q, k, v, self.valid).transpose(1, 2)
        return self.pack(mixed) if asking is None else mixed.flatten(0, 1)


class _Pick(torch.autograd.Function):
    """Some rows of a tensor, no row twice: so its gradient needs no sums, which are slow on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.rows = len(x)
        return x.index_select(0, at)

    @staticmethod
    def backward(ctx, *slopes: Tensor) -> tuple[Tensor, None]:
        (slope,), (at,) = slopes, ctx.saved_tensors
        return slope.new_zeros(ctx.rows, *slope.shape[1:]).index_copy_(0, at, slope), None


class _Place(torch.autograd.Function):
    """The rows of a tensor at some places of ``rows``, and zeros between."""

    @staticmethod
    def forward(ctx, x: Tensor, at: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(at)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, at, x)

    @staticmethod
    def backward(ctx, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (slope,), (at,) = slopes, ctx.saved_tensors
        return slope.index_select(0, at), None, None


def _heads(asking: Tensor | None, projected: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values "... H E", the queries being part of ``projected`` or given apart."""
    parts = projected.unflatten(-1, (3 if asking is None else 2, heads, -1)).unbind(-3)
    return parts if asking is None else (asking.unflatten(-1, (heads, -1)), *parts)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width {width} must be a multiple of the number of heads {heads}")
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.out = Linear(width, width)

    def forward(
        self, x: Float[Tensor, "*N D"], packing: Packing | None = None, last: int | None = None
    ) -> Float[Tensor, "*Q D"]:
        """Mix the tokens of each row; with ``last``, only the last so many ask (Q), and all answer."""
        width, asking = x.shape[-1], None
        if last is None:
            projected = self.qkv(x)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            of_queries, of_others = (None, None) if bias is None else (bias[:width], bias[width:])
            asking = F.linear(_last(x, packing, last), weight[:width], of_queries)
            projected = F.linear(x, weight[width:], of_others)
        if packing is None:
            q, k, v = (part.transpose(1, 2) for part in _heads(asking, projected, self.heads))
            mixed = attention(q, k, v).transpose(1, 2)
        else:
            mixed = packing.attention(asking, projected, self.heads)
        return self.out(mixed.flatten(-2))


def _last(x: Tensor, packing: Packing | None, count: int) -> Tensor:
    """The last ``count`` tokens of every row."""
    return x[:, -count:] if packing is None else packing.last(x, count)


class LayerNorm(nn.LayerNorm):
    """A LayerNorm that answers in the precision of what it is given; its sums are float32 inside all the same.

    CUDA's autocast would have float32 in and out, at the price of two copies of the residual stream: a step of ViT-B/16
    took a sixth longer (benchmarks/README.md).
    """

    def forward(self, input: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Features of mean 0 and variance 1, scaled and shifted."""
        if input.device.type != "cuda" or input.dtype == self.weight.dtype:
            return super().forward(input)
        with torch.autocast("cuda", enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class MLP(nn.Sequential):
    """Two layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(Linear(width, hidden), nn.GELU(), Linear(hidden, width))

    def forward(self, input: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """The features of each token, mixed."""
        wide, _, narrow = self
        return narrow(cast(Linear, wide).gelu(input))


class Block(nn.Module):
    """A pre-norm block: attention, then a GELU MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, qkv_bias: bool, norm_eps: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, hidden)

    def forward(
        self, x: Float[Tensor, "*N D"], packing: Packing | None = None, last: int | None = None
    ) -> Float[Tensor, "*Q D"]:
        """One layer; with ``last``, the last so many tokens of it (Q), without computing the others."""
        kept = x if last is None else _last(x, packing, last)
        kept = kept + self.attention(self.norm1(x), packing, last)
        return kept + self.mlp(self.norm2(kept))


class Stack(nn.Module):
    """``depth`` blocks and a final LayerNorm.

    ``recompute`` trades time for memory: activations inside a block are recomputed in the backward pass.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.recompute = False
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, norm_eps=norm_eps) for _ in range(depth)
        )
        self.norm = LayerNorm(width, eps=norm_eps)

    def forward(
        self, x: Float[Tensor, "B N D"], packed: Int[Tensor, "L"] | None = None, last: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """All layers and the final norm; with ``last``, only the last so many tokens (Q), which saves work.

        ``packed`` are the places, of the B * N, that hold a token; nothing is computed for the others, which are zero.
        """
        packing = None if packed is None else Packing(packed, *x.shape[:2])
        features = self._stream(x if packing is None else packing.pack(x), packing, last)[-1]
        # What leaves the network is rounded once less: in the precision of the weights.
        features = features.to(self.norm.weight.dtype)
        if last is not None and not self.blocks:
            features = _last(features, packing, last)
        features = self.norm(features)
        if packing is None:
            return features
        return packing.unpack(features) if last is None else features.unflatten(0, (packing.rows, last))

    def depths(self, x: Float[Tensor, "B N D"], until: int | None = None) -> list[Tensor]:
        """The residual stream "B N D" before the first block and after each one, up to number ``until`` where given,
        without the final norm."""
        return self._stream(x, until=until)

    def _stream(
        self, x: Tensor, packing: Packing | None = None, last: int | None = None, until: int | None = None
    ) -> list[Tensor]:
        """As :meth:`depths`, of rows that may be packed, and of the last block only the ``last`` tokens."""
        stream = [x]
        for number, block in enumerate(self.blocks[:until], 1):
            wanted = last if number == len(self.blocks) else None
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, packing, wanted, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, packing, wanted)
            stream.append(x)
        return stream


def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Truncated normal (0.02) weights, zero biases, norms of one and zero, as I-JEPA and MAE have them."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)

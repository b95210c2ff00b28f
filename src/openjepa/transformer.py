"""A pre-norm transformer (Dosovitskiy et al. 2021; Vaswani et al. 2017): attention, block, stack, and nothing else."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# On a CPU PyTorch's fused attention is slower than plain matrix products in bfloat16 up to about this many tokens, most
# of all in its backward pass; in float32 it is the faster one (benchmarks/attention.py measures both).
PLAIN_ATTENTION_TOKENS = 400


def attention_path(device: str, dtype: torch.dtype, tokens: int) -> str:
    """``plain`` (matrix products, softmax) or ``fused`` (scaled_dot_product_attention), whichever is faster there."""
    short = dtype == torch.bfloat16 and tokens <= PLAIN_ATTENTION_TOKENS
    return "plain" if device == "cpu" and short else "fused"


def attention(
    q: Float[Tensor, "B H Q E"],
    k: Float[Tensor, "B H N E"],
    v: Float[Tensor, "B H N E"],
    valid: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B H Q E"]:
    """Softmax attention of H heads of E features; tokens that are not ``valid`` are not attended to."""
    seen = None if valid is None else valid[:, None, None, :]
    if attention_path(q.device.type, q.dtype, k.shape[2]) == "fused":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1, dtype=scores.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width {width} must be a multiple of the number of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"] | None = None, last: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """Mix the tokens of each row; with ``last``, only the last so many ask (Q), and all answer."""
        width = x.shape[-1]
        if last is None:
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            asking, answering = (None, None) if bias is None else (bias[:width], bias[width:])
            q = F.linear(x[:, -last:], weight[:width], asking)
            k, v = F.linear(x, weight[width:], answering).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return self.out(attention(q, k, v, valid).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block: attention, then a GELU MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float, qkv_bias: bool, norm_eps: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = Attention(width, heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self, x: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"] | None = None, last: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """One layer; with ``last``, the last so many tokens of it (Q), without computing the others."""
        kept = x if last is None else x[:, -last:]
        kept = kept + self.attention(self.norm1(x), valid, last)
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
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(
        self, x: Float[Tensor, "B N D"], valid: Bool[Tensor, "B N"] | None = None, last: int | None = None
    ) -> Float[Tensor, "B Q D"]:
        """All layers and the final norm; with ``last``, only the last so many tokens (Q), which saves work."""
        features = self.depths(x, valid, last)[-1]
        # What leaves the network is rounded once less: in the precision of the weights.
        features = features.to(self.norm.weight.dtype)
        return self.norm(features if last is None else features[:, -last:])

    def depths(
        self,
        x: Float[Tensor, "B N D"],
        valid: Bool[Tensor, "B N"] | None = None,
        last: int | None = None,
        until: int | None = None,
    ) -> list[Tensor]:
        """The residual stream before the first block and after each one, up to number ``until`` where given, without
        the final norm.

        "B N D", but after the last block "B Q D" with only the ``last`` tokens, where given.
        """
        stream = [x]
        for number, block in enumerate(self.blocks[:until], 1):
            wanted = last if number == len(self.blocks) else None
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, valid, wanted, use_reentrant=False)
            else:
                x = block(x, valid, wanted)
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

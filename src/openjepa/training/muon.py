"""Muon: matrices move by their gradient's momentum with all its directions made equally large.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
(https://kellerjordan.github.io/posts/muon); the size of an update, so that AdamW's rates and decay serve, from Liu et
al. 2025, "Muon is scalable for LLM training", sec. 2.2.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.training.distributed import spread_as, whole

# Of Jordan's quintic polynomial a x + b x^3 + c x^5, whose iterates drive singular values in (0, 1] to about 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
# Least norm that a matrix is divided by: of smaller ones the squares are no longer to be had in float32.
_LEAST = 1e-18
# Sides from whose ratio on products of the smaller side alone are fewer, and iterations after which their rounding
# errors of 1e-7, that each multiplies by up to 3.4445^2, are to begin anew.
_LONG, _ITERATIONS_AT_ONCE = 1.5, 5
# What tells oneDNN which precision a float32 product needs; the second is what it was called before.
_ONEDNN = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
# Elements of the matrices that are moved side by side, which takes four times their memory for a moment.
_TOGETHER = 2**24


def orthogonalised(matrices: Float[Tensor, "K O I"], iterations: int, dtype: torch.dtype) -> Float[Tensor, "K O I"]:
    """K matrices, of O outputs and I inputs, with the singular vectors that they have and singular values near 1.

    By Newton-Schulz iterations: values above about 3.4445^-iterations of a matrix's Frobenius norm end between 0.68 and
    1.21, lower ones below that, and zero stays zero.

    Args:
        iterations: how many; each lowers the threshold.
        dtype: of the products.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.float().norm(dim=(1, 2), keepdim=True).clamp_min(_LEAST).to(dtype)
    if x.shape[2] > _LONG * x.shape[1] and dtype == torch.float32 and _exact_products(x.device):
        for done in range(0, iterations, _ITERATIONS_AT_ONCE):
            x = _through_gram(x, min(_ITERATIONS_AT_ONCE, iterations - done))
    else:
        for _ in range(iterations):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.mT if tall else x).to(matrices.dtype)


def _through_gram(x: Float[Tensor, "K M N"], iterations: int) -> Float[Tensor, "K M N"]:
    """The same iterations of ``x`` from those of its Gram matrix, with two products of its longer side in all instead
    of two in each: an iteration multiplies ``x`` by a polynomial s of its Gram matrix, which becomes s gram s.
    """
    gram = x @ x.mT
    factor: Tensor | None = None
    for left in reversed(range(iterations)):
        stretch = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        stretch.diagonal(dim1=1, dim2=2).add_(_A)
        factor = stretch if factor is None else stretch @ factor
        if left:
            gram = stretch @ gram @ stretch
    return x if factor is None else factor @ x


def _exact_products(device: torch.device) -> bool:
    """Whether float32 products on a device have float32's precision, not the TF32 or bfloat16 that PyTorch, and by its
    environment oneDNN, can be told to take; False where that is not known."""
    backends = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}
    products = getattr(backends.get(device.type), "matmul", None)
    told = getattr(products, "fp32_precision", None)
    if device.type == "cpu" and any(os.environ.get(name, "STRICT").upper() != "STRICT" for name in _ONEDNN):
        return False
    return told in ("none", "ieee")


class Muon(torch.optim.Optimizer):
    """Muon with weight decay apart from the gradient, as AdamW's is.

    An update has the root mean square that AdamW's usually has, 0.2 times the learning rate, however large gradients
    are. Each of several processes computes every update, and of matrices that are spread over them it gathers some at a
    time. Processors of different kinds round the products differently, so their weights would part by and by: let
    processes with DDP run on alike machines.

    Args:
        params: matrices, or groups of them. Of a group with ``parts`` above 1 so many matrices lie one below the other
            in each, as a layer's of queries, keys and values, and are made equally large apart.
        momentum: of the gradients' mean; the update looks one step ahead (Nesterov).
        iterations: see :func:`orthogonalised`.
        bf16: whether its products are in bfloat16.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        iterations: int = 5,
        bf16: bool = False,
    ) -> None:
        settings = {"momentum": momentum, "iterations": iterations, "bf16": bf16, "parts": 1}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every matrix that has a gradient; what a ``closure`` gives, called first, is handed on."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in alike.items():
                count = max(1, _TOGETHER // shape.numel())
                for first in range(0, len(matrices), count):
                    self._move(matrices[first : first + count], group)
        return loss

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """A step of matrices of one shape, side by side: they are small, and there are many."""
        ahead = []
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix)
            assert matrix.grad is not None
            state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
            ahead.append(whole(matrix.grad.lerp(state["momentum"], group["momentum"])))
        apart = torch.stack(ahead).unflatten(1, (group["parts"], -1)).flatten(0, 1)
        size = 0.2 * group["lr"] * math.sqrt(max(apart.shape[1:]))
        found = orthogonalised(apart, group["iterations"], torch.bfloat16 if group["bf16"] else torch.float32)
        for matrix, update in zip(matrices, found.view(-1, *ahead[0].shape), strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.sub_(spread_as(update, matrix), alpha=size)

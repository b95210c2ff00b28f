"""A signal cut into a grid of tokens, for any number of axes: 1-D sound, 2-D images, 3-D clips and volumes.

Axes: B batch, C channels, *S extents of the signal, A grid axes, N tokens of the grid, P values of a patch, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """The extents of a grid of tokens, in raster order (the last axis runs fastest)."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(extent) for extent in self.shape))
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"a token grid needs at least one axis and positive extents, got {self.shape}")

    @classmethod
    def of(cls, signal: Sequence[int], patch: Sequence[int]) -> "TokenGrid":
        """The grid of a signal with extents ``signal`` cut into patches of ``patch`` (both in samples or pixels)."""
        if len(signal) != len(patch):
            raise ValueError(
                f"a signal of {len(signal)} axes {tuple(signal)} needs as many patch sizes, got {tuple(patch)}"
            )
        if any(p < 1 or s < p or s % p for s, p in zip(signal, patch, strict=True)):
            raise ValueError(f"extents {tuple(signal)} are not positive multiples of the patch {tuple(patch)}")
        return cls(tuple(s // p for s, p in zip(signal, patch, strict=True)))

    @property
    def size(self) -> int:
        """Number of tokens, N."""
        return math.prod(self.shape)

    def coords(self) -> Int[Tensor, "N A"]:
        """Integer coordinates of every token, in raster order."""
        return torch.cartesian_prod(*map(torch.arange, self.shape)).reshape(self.size, len(self.shape))


def patchify(x: Shaped[Tensor, "B C *S"], patch: Sequence[int]) -> Shaped[Tensor, "B N P"]:
    """Cut a signal into patches, in raster order; a patch's P values run over channels first, then its own axes.

    That order is a convolution kernel's, so a linear layer on it equals a strided convolution (Dosovitskiy et al.
    2021, sec. 3.1).
    """
    grid = TokenGrid.of(x.shape[2:], patch).shape
    axes = len(grid)
    split = x.reshape(*x.shape[:2], *(n for pair in zip(grid, patch, strict=True) for n in pair))
    order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    return split.permute(order).reshape(x.shape[0], math.prod(grid), -1)


def unpatchify(tokens: Shaped[Tensor, "B N P"], patch: Sequence[int], grid: TokenGrid) -> Shaped[Tensor, "B C *S"]:
    """The inverse of :func:`patchify`."""
    axes = len(grid.shape)
    split = tokens.reshape(tokens.shape[0], *grid.shape, -1, *patch)
    order = (0, axes + 1, *(n for a in range(axes) for n in (1 + a, axes + 2 + a)))
    return split.permute(order).reshape(tokens.shape[0], -1, *(n * p for n, p in zip(grid.shape, patch, strict=True)))


def take(tokens: Shaped[Tensor, "B N D"], index: Int[Tensor, "B *K"]) -> Shaped[Tensor, "B *K D"]:
    """Gather tokens by index, each row of the batch with its own."""
    flat = index.flatten(1)
    picked = tokens.gather(1, flat[..., None].expand(-1, -1, tokens.shape[-1]))
    return picked.view(*index.shape, tokens.shape[-1])


def sincos_widths(grid: TokenGrid, width: int) -> tuple[int, ...]:
    """How the width is shared between the axes: evenly, in pairs, the last axis taking what is left.

    An axis with a single position has nothing to tell and gets no share: a clip of one frame has the image's table.
    """
    told = [axis for axis, extent in enumerate(grid.shape) if extent > 1] or [len(grid.shape) - 1]
    share = width // len(told) // 2 * 2
    widths = [share if axis in told else 0 for axis in range(len(grid.shape))]
    widths[told[-1]] = (width - share * (len(told) - 1)) // 2 * 2
    if share < 2:
        raise ValueError(f"a width of {width} is too small for positions on a grid of {len(told)} axes {grid.shape}")
    return tuple(widths)


def sincos_positions(native: TokenGrid, width: int, grid: TokenGrid | None = None) -> Float[Tensor, "N D"]:
    """Fixed sine-cosine positions (I-JEPA app. A.1; MAE app. A.1), for any number of axes.

    The last axis (columns) fills the first part of the width, then the one before it, and so on; each part holds
    sin, then cos, at frequencies 10000^(-i / (part / 2)). A part is odd-proofed with zeros at the end.

    ``grid`` other than ``native`` stretches it over the native one: token centres are mapped to the same place of the
    picture, so that a 28x28 grid sees the coordinates of a 14x14 one at half steps, and other aspect ratios likewise.
    Computed in float64, returned in float32.
    """
    grid = grid or native
    if len(grid.shape) != len(native.shape):
        raise ValueError(
            f"positions of a grid of {len(native.shape)} axes cannot serve {len(grid.shape)}: {grid.shape}"
        )
    stretch = torch.tensor([n / g for n, g in zip(native.shape, grid.shape, strict=True)], dtype=torch.float64)
    coords = (grid.coords().to(torch.float64) + 0.5) * stretch - 0.5
    parts = []
    for axis, part in reversed(list(enumerate(sincos_widths(native, width)))):
        frequency = 10000 ** (-torch.arange(part // 2, dtype=torch.float64) / (part / 2))
        angle = coords[:, axis, None] * frequency
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, 1)
    return F.pad(table, (0, width - table.shape[1])).to(torch.float32)


def resample_positions(table: Float[Tensor, "N D"], native: TokenGrid, grid: TokenGrid) -> Float[Tensor, "M D"]:
    """A learned position table at another grid: bicubic for two axes, else linear (token centres aligned)."""
    if len(native.shape) > 3:
        raise ValueError(f"a learned position table of {len(native.shape)} axes cannot be resampled to {grid.shape}")
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(native.shape)]
    picture = table.T.reshape(1, table.shape[1], *native.shape)
    return F.interpolate(picture, size=grid.shape, mode=mode, align_corners=False)[0].flatten(1).T

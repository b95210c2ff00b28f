"""What a mask is: the tokens that are seen and those that are predicted; and what every sampler of blocks needs.

Axes: R mask sets (rows), K context tokens, M target blocks, T tokens per block, A grid axes, N tokens of the grid.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from openjepa.settings import check_settings


@dataclass(frozen=True)
class Masks:
    """The token indices of R mask sets, image by image: with E sets per image, row r belongs to image r // E.

    ``context_packed`` is None when every row has K tokens; otherwise it holds the places of the flattened ``context``,
    rising, that count, and the others are padding. ``keys`` is a random number for each row, for what an objective
    draws besides (noise). ``grid`` are the extents of the token grid that the indices are of, None where nobody says.
    """

    context: Int[Tensor, "R K"]
    targets: Int[Tensor, "R M T"]
    context_packed: Int64[Tensor, "L"] | None = None
    keys: Int64[Tensor, "R"] | None = None
    grid: tuple[int, ...] | None = None

    def sets(self, images: int) -> int:
        """E, the mask sets of each of so many images.

        Raises:
            ValueError: the rows are no multiple of the images.
        """
        rows = len(self.context)
        if not 0 < images <= rows or rows % images:
            raise ValueError(f"{rows} mask sets cannot be those of {images} images: each has one, or equally many")
        return rows // images

    @property
    def context_valid(self) -> Bool[Tensor, "R K"]:
        """Which places of ``context`` are no padding."""
        if self.context_packed is None:
            return torch.ones_like(self.context, dtype=torch.bool)
        nowhere = torch.zeros_like(self.context, dtype=torch.bool)
        return nowhere.flatten().index_fill(0, self.context_packed, True).view_as(nowhere)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Masks":
        """A copy on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Masks":
        """A copy in pinned memory, for an asynchronous transfer to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def share_memory_(self) -> "Masks":
        """The same, moved to memory that other processes see."""
        return self._map(lambda tensor: tensor.share_memory_())

    def clone(self) -> "Masks":
        """A copy where they are."""
        return self._map(lambda tensor: tensor.clone())

    def rows(self, start: int, stop: int) -> "Masks":
        """The mask sets ``start`` to ``stop``."""
        if (start, stop) == (0, len(self.context)):
            return self
        rows, packed = slice(start, stop), self.context_packed
        if packed is not None:
            first, end = start * self.context.shape[1], stop * self.context.shape[1]
            packed = packed[(packed >= first) & (packed < end)] - first
        keys = None if self.keys is None else self.keys[rows]
        return Masks(self.context[rows], self.targets[rows], packed, keys, self.grid)

    def _map(self, change) -> "Masks":
        packed, keys = (None if part is None else change(part) for part in (self.context_packed, self.keys))
        return Masks(change(self.context), change(self.targets), packed, keys, self.grid)


@dataclass(frozen=True, kw_only=True)
class MultiBlockConfig:
    """Settings of multi-block masks; the defaults are the paper's (app. A.1).

    Attributes:
        shape: ``fixed`` (a constant number of context tokens, a random subset of the visible ones: static shapes),
            ``packed`` (all visible tokens, lengths vary) or ``reference`` (the published sampler).
        targets: number of target blocks, M.
        target_scale: share of the grid that a target block covers, lowest and highest.
        target_aspect: extent along an axis over the extent along the next one, relative to the grid's own proportions.
        contexts: context blocks per image; each is a mask set of its own, with the same targets.
        context_scale: share of the grid that a context block covers before the targets are taken out.
        context_aspect: as ``target_aspect``.
        allow_overlap: whether the context keeps tokens that are targets.
        context_tokens: K of ``fixed``; None takes what three quarters of the draws can give, within ``context_share``.
        context_share: K of ``fixed`` as the largest share of the grid, where ``context_tokens`` is None.
        min_keep: ``reference`` only: a block must have more tokens than this.
    """

    shape: Literal["fixed", "packed", "reference"] = "fixed"
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    contexts: int = 1
    context_scale: tuple[float, float] = (0.85, 1.0)
    context_aspect: tuple[float, float] = (1.0, 1.0)
    allow_overlap: bool = False
    context_tokens: int | None = None
    context_share: float = 1.0
    min_keep: int = 10

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} needs 0 < low <= high <= 1, got {(low, high)}")
        for name in ("target_aspect", "context_aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} needs 0 < low <= high, got {(low, high)}")
        if not 0 < self.context_share <= 1:
            raise ValueError(f"context_share is a share of the grid in (0, 1], got {self.context_share}")
        if self.targets < 1 or self.contexts < 1:
            raise ValueError(
                f"at least one target and one context block are needed, got {self.targets}, {self.contexts}"
            )
        if self.min_keep < 0 or (self.context_tokens is not None and self.context_tokens < 1):
            raise ValueError(
                f"context_tokens is 1 or more (or None) and min_keep 0 or more, got {self.context_tokens} and "
                f"{self.min_keep}"
            )


def inside_blocks(
    coords: Int[np.ndarray, "N A"], start: Int[np.ndarray, "*B A"], extents: Int[np.ndarray, "*#B A"]
) -> Bool[np.ndarray, "*B N"]:
    """Which tokens lie in each block, given by its first token and its extents."""
    inside = (coords >= start[..., None, :]) & (coords < (start + extents)[..., None, :])
    return np.asarray(inside.all(-1))


def first_tokens(rows: Bool[np.ndarray, "*B N"], count: int) -> Int[np.ndarray, "*B count"]:
    """Indices of the first ``count`` tokens of each row in raster order; others fill up where there are fewer."""
    return np.argsort(~rows, axis=-1, kind="stable")[..., :count]

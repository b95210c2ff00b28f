"""Which tokens are seen and which are predicted: index sets as a pure function of (seed, step, sample).

I-JEPA's multi-block masks (Assran et al. 2023, sec. 3 and app. A.1) on a grid of any number of axes. A sample's mask
does not depend on who shares its batch, every position of the grid can be drawn, and nothing is cut in raster order.
``shape="reference"`` is the published sampler instead, with its flaws (``masking_reference.py``).

Axes: R mask sets (rows), K context tokens, M target blocks, T tokens per block, A grid axes, N tokens of the grid.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from openjepa import draws
from openjepa.grid import TokenGrid
from openjepa.masking_reference import ReferenceSampler
from openjepa.masks import Masks, MultiBlockConfig, first_tokens, inside_blocks

_ATTEMPTS = 256
_SURVEY = 1024


class MultiBlockMasking:
    """Draws multi-block masks on ``grid``: ``masking(samples, step) -> Masks``.

    Args:
        grid: the token grid, any number of axes.
        config: see :class:`MultiBlockConfig`.
        seed: the run's seed.

    Raises:
        ValueError: the grid cannot give what the settings ask for; the message holds the numbers.
    """

    def __init__(self, grid: TokenGrid, config: MultiBlockConfig | None = None, *, seed: int = 0) -> None:
        self.grid = grid
        self.config = config = config or MultiBlockConfig()
        self.seed = seed
        # Axes of one position take no part, so that a clip of one frame has exactly the masks of the image.
        self._extents = tuple(extent for extent in grid.shape if extent > 1) or (1,)
        self._coords = TokenGrid(self._extents).coords().numpy()
        self.target_tokens = self.context_tokens = 0
        self._reference = ReferenceSampler(grid, config, seed=seed) if config.shape == "reference" else None
        if self._reference is None:
            self._settle()

    def __call__(self, samples: Int[Tensor, "B"] | Int[np.ndarray, "B"], step: int) -> Masks:
        """The masks of ``samples`` (their numbers in the data set) at ``step`` (or epoch): a pure function."""
        ids = np.asarray(samples)
        if self._reference is not None:
            masks = self._reference(ids, step)
        else:
            masks = self._index(ids, step, *self._draw(ids, step))
        keys = _keys(self.seed, step, ids[:, None], np.arange(self.config.contexts))
        return replace(masks, keys=keys, grid=self.grid.shape)

    def _blocks(
        self, ids: Int[np.ndarray, "B"], step: int, attempt: int, name: str, count: int
    ) -> Bool[np.ndarray, "B count N"]:
        """Boolean coverage of ``count`` blocks for each sample, sizes and places independent and uniform."""
        scale, aspect = getattr(self.config, f"{name}_scale"), getattr(self.config, f"{name}_aspect")
        axes = len(self._extents)
        keys = (self.seed, step, ids[:, None, None], attempt, np.arange(count)[:, None], np.arange(2 * axes))
        u = draws.uniform(f"mask {name}", *keys)
        extents = block_extents(self._extents, scale, aspect, u[..., :axes])
        room = np.asarray(self._extents) - extents + 1
        start = np.floor(u[..., axes:] * room).astype(np.int64)
        return inside_blocks(self._coords, start, extents)

    def _attempt(self, ids, step: int, attempt: int):
        targets = self._blocks(ids, step, attempt, "target", self.config.targets)
        visible = self._blocks(ids, step, attempt, "context", self.config.contexts)
        if not self.config.allow_overlap:
            visible &= ~targets.any(1, keepdims=True)
        return targets, visible

    def _draw(self, ids, step: int) -> tuple[Bool[np.ndarray, "B M N"], Bool[np.ndarray, "B E N"]]:
        """Target blocks and visible tokens; a sample whose draw is too small is drawn again, on its own."""
        targets, visible = self._attempt(ids, step, 0)
        least = self.context_tokens if self.config.shape == "fixed" else 1
        for attempt in range(1, _ATTEMPTS):
            redo = (targets.sum(-1).min(1) < self.target_tokens) | (visible.sum(-1).min(1) < least)
            if not redo.any():
                return targets, visible
            targets[redo], visible[redo] = self._attempt(ids[redo], step, attempt)
        raise RuntimeError(f"no mask with {least} context tokens on {self.grid.shape} in {_ATTEMPTS} draws")

    def _index(self, ids, step: int, targets, visible) -> Masks:
        keys = (self.seed, step, ids[:, None, None])
        tokens = np.arange(self.grid.size)
        order = draws.uniform("mask target subset", *keys, np.arange(targets.shape[1])[:, None], tokens)
        target_at = _smallest(np.where(targets, order, 2.0), self.target_tokens)
        target_at = np.repeat(target_at, self.config.contexts, 0)
        rows = visible.reshape(-1, self.grid.size)
        if self.config.shape == "fixed":
            order = draws.uniform("mask context subset", *keys, np.arange(visible.shape[1])[:, None], tokens)
            context_at = _smallest(np.where(visible, order, 2.0), self.context_tokens)
            return Masks(torch.from_numpy(context_at.reshape(len(rows), -1)), torch.from_numpy(target_at))
        lengths = rows.sum(1)
        context_at = first_tokens(rows, int(lengths.max()))
        valid = np.arange(lengths.max()) < lengths[:, None]
        context_at = np.where(valid, context_at, 0)
        packed = torch.from_numpy(np.flatnonzero(valid))
        return Masks(torch.from_numpy(context_at), torch.from_numpy(target_at), packed)

    def _settle(self) -> None:
        """Settle T and K from many draws, and refuse what the grid cannot give."""
        targets, visible = self._attempt(np.arange(_SURVEY), 0, -1)
        lengths = visible.sum(-1).min(1)
        most = int(np.quantile(lengths, 0.9))
        self.target_tokens = int(np.quantile(targets.sum(-1).min(1), 0.1))
        if most < 1:
            raise ValueError(
                f"no context is left on a grid of {self.grid.shape} ({self.grid.size} tokens) once "
                f"{self.config.targets} target blocks of scale {self.config.target_scale} are taken out; "
                f"ask for fewer or smaller target blocks"
            )
        wanted = self.config.context_tokens
        share = round(self.config.context_share * self.grid.size)
        self.context_tokens = max(1, min(share, int(np.quantile(lengths, 0.25)))) if wanted is None else wanted
        if not 1 <= self.context_tokens <= most:
            raise ValueError(
                f"context_tokens={wanted} is not to be had on a grid of {self.grid.shape} ({self.grid.size} tokens): "
                f"with {self.config.targets} target blocks of scale {self.config.target_scale} nine draws in ten leave "
                f"at most {most}; ask for 1 to that many, or for fewer or smaller targets"
            )


class RandomMasking:
    """A random share of the tokens is seen, and all others are asked for as one block (MAE, He et al. 2022, sec. 3).

    Args:
        grid: the token grid.
        visible: share of the tokens that is seen.
        seed: the run's seed.

    Raises:
        ValueError: nothing would be seen, or nothing asked.
    """

    def __init__(self, grid: TokenGrid, visible: float = 0.25, *, seed: int = 0) -> None:
        self.grid, self.seed = grid, seed
        self.context_tokens = round(visible * grid.size)
        self.target_tokens = grid.size - self.context_tokens
        if not 0 < self.context_tokens < grid.size:
            raise ValueError(
                f"a visible share of {visible} leaves {self.context_tokens} of the {grid.size} tokens to see; ask for "
                f"a share between {1 / grid.size:.3g} and {1 - 1 / grid.size:.3g}"
            )

    def __call__(self, samples: Int[Tensor, "B"] | Int[np.ndarray, "B"], step: int) -> Masks:
        """The masks of ``samples`` (their numbers in the data set) at ``step`` (or epoch): a pure function."""
        keys = (self.seed, step, np.asarray(samples)[:, None])
        order = np.argsort(draws.uniform("mask random", *keys, np.arange(self.grid.size)), axis=1)
        context, targets = (np.sort(part, 1) for part in np.split(order, [self.context_tokens], axis=1))
        return Masks(torch.from_numpy(context), torch.from_numpy(targets[:, None]), grid=self.grid.shape)


class WholeMasking:
    """Every token is seen, and every one asked for: what hides something is noise, drawn from the masks' ``keys``.

    Args:
        grid: the token grid.
        seed: the run's seed.
    """

    def __init__(self, grid: TokenGrid, *, seed: int = 0) -> None:
        self.grid, self.seed = grid, seed
        self.context_tokens = self.target_tokens = grid.size

    def __call__(self, samples: Int[Tensor, "B"] | Int[np.ndarray, "B"], step: int) -> Masks:
        """The masks of ``samples`` (their numbers in the data set) at ``step`` (or epoch): a pure function."""
        every = torch.arange(self.grid.size).expand(len(samples), -1)
        keys = _keys(self.seed, step, np.asarray(samples))
        return Masks(every.clone(), every[:, None].clone(), None, keys, self.grid.shape)


def _keys(*keys: int | np.ndarray) -> Int64[Tensor, "R"]:
    """:attr:`Masks.keys`, one for every combination of ``keys``."""
    return torch.from_numpy(draws.bits("mask keys", *keys).view(np.int64).flatten())


def block_extents(
    grid: tuple[int, ...], scale: tuple[float, float], aspect: tuple[float, float], u: Float64[np.ndarray, "*B A"]
) -> Int[np.ndarray, "*B A"]:
    """Block sizes in tokens from uniform numbers: the first draws the scale, the others the aspect of each axis against
    the next. A block has the grid's proportions times the aspect."""
    share = scale[0] + u[..., :1] * (scale[1] - scale[0])
    ratios = np.log(aspect[0] + u[..., 1:] * (aspect[1] - aspect[0]))
    # An axis' log extent is the sum of the log ratios from it on, centred: the product of all extents is the scale.
    stretch = np.concatenate([np.cumsum(ratios[..., ::-1], -1)[..., ::-1], np.zeros_like(share)], -1)
    stretch = np.exp(stretch - stretch.mean(-1, keepdims=True))
    wanted = np.asarray(grid) * share ** (1 / len(grid)) * stretch
    return np.clip(np.round(wanted), 1, grid).astype(np.int64)


def _smallest(order: Float64[np.ndarray, "... N"], count: int) -> Int[np.ndarray, "... count"]:
    """Indices of the ``count`` smallest numbers along the last axis, in raster order."""
    return np.sort(np.argpartition(order, count - 1, axis=-1)[..., :count], axis=-1)

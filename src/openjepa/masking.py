"""Which tokens are seen and which are predicted: index sets as a pure function of (seed, step, sample).

I-JEPA's multi-block masks (Assran et al. 2023, sec. 3 and app. A.1) on a grid of any number of axes. A sample's mask
does not depend on who shares its batch, every position of the grid can be drawn, and nothing is cut in raster order.
``shape="reference"`` reproduces the published sampler instead, with its flaws, to follow published numbers.

Axes: R mask sets (rows), K context tokens, M target blocks, T tokens per block, A grid axes, N tokens of the grid.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from openjepa import draws
from openjepa.grid import TokenGrid

_ATTEMPTS = 256
_SURVEY = 1024


@dataclass(frozen=True)
class Masks:
    """The token indices of R mask sets, image by image: with E sets per image, row r belongs to image r // E.

    ``context_packed`` is None when every row has K tokens; otherwise it holds the places of the flattened ``context``,
    rising, that count, and the others are padding. ``keys`` is a random number for each row, for what an objective
    draws besides (noise).
    """

    context: Int[Tensor, "R K"]
    targets: Int[Tensor, "R M T"]
    context_packed: Int64[Tensor, "L"] | None = None
    keys: Int64[Tensor, "R"] | None = None

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
        return Masks(self.context[rows], self.targets[rows], packed, None if self.keys is None else self.keys[rows])

    def _map(self, change) -> "Masks":
        packed, keys = (None if part is None else change(part) for part in (self.context_packed, self.keys))
        return Masks(change(self.context), change(self.targets), packed, keys)


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
        if config.shape == "reference":
            self._check_reference()
        else:
            self._settle()

    def __call__(self, samples: Int[Tensor, "B"] | Int[np.ndarray, "B"], step: int) -> Masks:
        """The masks of ``samples`` (their numbers in the data set) at ``step`` (or epoch): a pure function."""
        ids = np.asarray(samples)
        if self.config.shape == "reference":
            masks = self._reference(ids, step)
        else:
            masks = self._index(ids, step, *self._draw(ids, step))
        return replace(masks, keys=_keys(self.seed, step, ids[:, None], np.arange(self.config.contexts)))

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
        inside = (self._coords >= start[..., None, :]) & (self._coords < (start + extents)[..., None, :])
        return np.asarray(inside.all(-1))

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
        context_at = np.argsort(~rows, axis=1, kind="stable")[:, : lengths.max()]
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

    def _check_reference(self) -> None:
        if len(self.grid.shape) != 2:
            raise ValueError(
                f"shape='reference' is the published 2-D sampler; the grid has {len(self.grid.shape)} axes"
            )
        ends = np.linspace(0, 1, 4096)
        for name in ("target", "context"):
            low, high = _reference_extents(
                self.grid, getattr(self.config, f"{name}_scale"), getattr(self.config, f"{name}_aspect"), ends
            )
            least = int((low * high).min())
            if least <= self.config.min_keep:
                raise ValueError(
                    f"the published sampler would loop for ever: a {name} block on a grid of {self.grid.shape} can "
                    f"have {least} tokens and min_keep={self.config.min_keep} asks for more; set min_keep below {least}"
                )

    def _reference(self, ids, step: int) -> Masks:
        """The published sampler: one block size for the batch from one random number for scale and aspect, places that
        never reach the last row or column, and truncation of the batch to its shortest mask in raster order."""
        config = self.config
        batch = draws.uniform("reference size", self.seed, step, int(ids[0]), np.arange(2))
        sizes = {
            name: _reference_extents(
                self.grid, getattr(config, f"{name}_scale"), getattr(config, f"{name}_aspect"), batch[i : i + 1]
            )
            for i, name in enumerate(("target", "context"))
        }
        targets = self._reference_places(ids, step, 0, "target", config.targets, sizes["target"])
        visible = np.zeros((len(ids), config.contexts, self.grid.size), bool)
        short = np.ones(visible.shape[:2], bool)
        # Twenty tries for each number of target blocks that the context must avoid, then one block fewer.
        for attempt in range(20 * (config.targets + 1)):
            redo = short.any(1)
            if not redo.any():
                break
            again = self._reference_places(ids[redo], step, attempt, "context", config.contexts, sizes["context"])
            if not config.allow_overlap:
                again &= ~targets[redo, attempt // 20 :].any(1, keepdims=True)
            visible[redo] = np.where(short[redo][..., None], again, visible[redo])
            short = visible.sum(-1) <= config.min_keep
        rows = visible.reshape(-1, self.grid.size)
        context_at = np.argsort(~rows, axis=1, kind="stable")[:, : rows.sum(1).min()]
        target_at = np.argsort(~targets, axis=2, kind="stable")[:, :, : targets.sum(-1).min()]
        return Masks(torch.from_numpy(context_at), torch.from_numpy(np.repeat(target_at, config.contexts, 0)))

    def _reference_places(self, ids, step: int, attempt: int, name: str, count: int, size):
        keys = (self.seed, step, ids[:, None, None], attempt, np.arange(count)[:, None], np.arange(2))
        u = draws.uniform(f"reference {name}", *keys)
        extents = np.stack(size, -1)[0]
        start = np.floor(u * (np.asarray(self.grid.shape) - extents)).astype(np.int64)
        inside = (self._coords >= start[..., None, :]) & (self._coords < (start + extents)[..., None, :])
        return np.asarray(inside.all(-1))


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
        return Masks(torch.from_numpy(context), torch.from_numpy(targets[:, None]))


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
        return Masks(every.clone(), every[:, None].clone(), None, _keys(self.seed, step, np.asarray(samples)))


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


def _reference_extents(grid: TokenGrid, scale, aspect, u) -> tuple[np.ndarray, np.ndarray]:
    keep = np.floor(grid.size * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    rows = np.round(np.sqrt(keep * ratio)).astype(np.int64)
    columns = np.round(np.sqrt(keep / ratio)).astype(np.int64)
    return np.clip(rows, 1, grid.shape[0] - 1), np.clip(columns, 1, grid.shape[1] - 1)


def _smallest(order: Float64[np.ndarray, "... N"], count: int) -> Int[np.ndarray, "... count"]:
    """Indices of the ``count`` smallest numbers along the last axis, in raster order."""
    return np.sort(np.argpartition(order, count - 1, axis=-1)[..., :count], axis=-1)

"""The published sampler of I-JEPA's masks, with its flaws, to follow published numbers; the fair one: ``masking.py``.

One block size for the batch, from one random number for scale and aspect; places that never reach the last row or
column; and truncation of the batch to its shortest mask in raster order.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int64

from openjepa import draws
from openjepa.grid import TokenGrid
from openjepa.masks import Masks, MultiBlockConfig, first_tokens, inside_blocks


class ReferenceSampler:
    """Draws masks as published: ``sampler(samples, step) -> Masks``, which depend on who shares the batch.

    Raises:
        ValueError: the grid has other than two axes, or is so small that the published sampler would never end.
    """

    def __init__(self, grid: TokenGrid, config: MultiBlockConfig, *, seed: int) -> None:
        if len(grid.shape) != 2:
            raise ValueError(f"shape='reference' is the published 2-D sampler; the grid has {len(grid.shape)} axes")
        self.grid, self.config, self.seed = grid, config, seed
        self._coords = grid.coords().numpy()
        for name in ("target", "context"):
            least = int(self._extents(name, np.linspace(0, 1, 4096)).prod(-1).min())
            if least <= config.min_keep:
                raise ValueError(
                    f"the published sampler would loop for ever: a {name} block on a grid of {grid.shape} can "
                    f"have {least} tokens and min_keep={config.min_keep} asks for more; set min_keep below {least}"
                )

    def __call__(self, ids: Int[np.ndarray, "B"], step: int) -> Masks:
        """The masks of a batch, without ``keys``."""
        config = self.config
        size = draws.uniform("reference size", self.seed, step, int(ids[0]), np.arange(2))
        target, context = self._extents("target", size)[0], self._extents("context", size)[1]
        targets = self._places(ids, step, 0, "target", config.targets, target)
        visible = np.zeros((len(ids), config.contexts, self.grid.size), bool)
        short = np.ones(visible.shape[:2], bool)
        # Twenty tries for each number of target blocks that the context must avoid, then one block fewer.
        for attempt in range(20 * (config.targets + 1)):
            redo = short.any(1)
            if not redo.any():
                break
            again = self._places(ids[redo], step, attempt, "context", config.contexts, context)
            if not config.allow_overlap:
                again &= ~targets[redo, attempt // 20 :].any(1, keepdims=True)
            visible[redo] = np.where(short[redo][..., None], again, visible[redo])
            short = visible.sum(-1) <= config.min_keep
        rows = visible.reshape(-1, self.grid.size)
        context_at = first_tokens(rows, int(rows.sum(1).min()))
        target_at = first_tokens(targets, int(targets.sum(-1).min()))
        return Masks(torch.from_numpy(context_at), torch.from_numpy(np.repeat(target_at, config.contexts, 0)))

    def _extents(self, name: str, u: Float64[np.ndarray, "*U"]) -> Int64[np.ndarray, "*U 2"]:
        """Rows and columns of a block, both from one random number; never the whole of the grid's."""
        scale, aspect = getattr(self.config, f"{name}_scale"), getattr(self.config, f"{name}_aspect")
        keep = np.floor(self.grid.size * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect[0] + u * (aspect[1] - aspect[0])
        extents = np.round(np.sqrt(np.stack([keep * ratio, keep / ratio], -1))).astype(np.int64)
        return np.clip(extents, 1, np.asarray(self.grid.shape) - 1)

    def _places(
        self,
        ids: Int[np.ndarray, "B"],
        step: int,
        attempt: int,
        name: str,
        count: int,
        extents: Int64[np.ndarray, "2"],
    ) -> Bool[np.ndarray, "B count N"]:
        """Boolean coverage of ``count`` blocks for each sample, which never reach the last row or column."""
        keys = (self.seed, step, ids[:, None, None], attempt, np.arange(count)[:, None], np.arange(2))
        u = draws.uniform(f"reference {name}", *keys)
        start = np.floor(u * (np.asarray(self.grid.shape) - extents)).astype(np.int64)
        return inside_blocks(self._coords, start, extents)

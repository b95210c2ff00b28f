"""Scenes of several objects with known places: the questions of Clevr/Count and Clevr/Dist, drawn offline.

CLEVR (Johnson et al. 2017) as a transfer task (Zhai et al. 2019, VTAB; I-JEPA, tab. 4) asks how many objects a picture
holds and how near they are: local questions, which features that only name a picture's subject cannot answer. VTAB's
distance is the camera's to the nearest object; without depth, here it is that of the two objects nearest to each other.
The objects are items of the bundled sample, cut out by their own intensity, on a textured ground. Exactly one of them
is darker than the ground and all others are brighter, so "where is it" has one answer.

Lengths are in units of the scene's shorter side. O objects, M places for objects in a scene.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from openjepa import draws
from openjepa.data.idx import ArraySource, open_sample

MOST_OBJECTS = 6
DISTANCE_CLASSES = 8
TASKS = ("count", "nearest distance", "position")
# Of an item's frame; centres keep the margin from the scene's edges, and this many mean sides from each other.
_SIDES = (0.24, 0.36)
_MARGIN = 0.17
_GAP = 0.75
_TRIES = 48
_WAVES = 6
# Scenes whose distances settle the limits of the classes: their quantiles are then good to a percent.
_REFERENCE = 8192


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What stands where; only the first ``count`` places of a scene are used, and the first one is the dark object."""

    count: Int64[np.ndarray, "B"]
    centres: Float64[np.ndarray, "B M 2"]  # row, column
    sides: Float64[np.ndarray, "B M"]

    def nearest(self) -> Float64[np.ndarray, "B"]:
        """Distance between the centres of the two objects closest to each other; infinite for one object alone."""
        apart = np.linalg.norm(self.centres[:, :, None] - self.centres[:, None], axis=-1)
        place = np.arange(self.centres.shape[1])
        pair = (place[:, None] < place) & (place < self.count[:, None, None])
        return np.where(pair, apart, np.inf).min((1, 2))


class Scenes:
    """Scene i is a function of (seed, part, i); scenes of the two parts have no item in common.

    Args:
        seed: of everything random.
        size: height and width in pixels, of at least 16.
        channels: of the scenes; with more than one, ground and objects are coloured.
        part: whose items they are made of, the sample's train or test part.
    """

    def __init__(self, *, seed: int, size: tuple[int, int], channels: int, part: Literal["train", "test"]) -> None:
        if min(size) < 16 or channels < 1:
            raise ValueError(f"scenes need at least 16 x 16 pixels and a channel, got {size} and {channels}")
        self.seed, self.size, self.channels = seed, size, channels
        self._part = int(part == "test")
        sample = open_sample()
        source = sample.test if part == "test" else sample.train
        assert isinstance(source, ArraySource)
        self.items: UInt8[np.ndarray, "n h w"] = source.images[..., 0]
        self._unit = min(size)

    def layout(self, index: Int[np.ndarray, "B"]) -> Layout:
        """Number, places and sizes of the objects of scenes ``index``."""
        return _layout(self._key(index), (self.size[0] / self._unit, self.size[1] / self._unit))

    def labels(self, index: Int[np.ndarray, "B"]) -> dict[str, Int64[np.ndarray, "B"]]:
        """The class of each scene for every one of TASKS, -1 where the question has no answer.

        ``count``: 0 to 5 for one to six objects. ``nearest distance``: between the two closest centres, in eight
        classes of equal frequency; -1 for one object alone. ``position``: the cell, in raster order, of a 3 x 3
        division of the area that centres can take, in which the dark object's centre is.
        """
        layout = self.layout(index)
        nearest = layout.nearest()
        extents = self.size[0] / self._unit, self.size[1] / self._unit
        distance = np.searchsorted(distance_limits(extents), nearest, side="right")
        share = (layout.centres[:, 0] - _MARGIN) / (np.array(extents) - 2 * _MARGIN)
        row, column = np.minimum((3 * share).astype(np.int64), 2).T
        return {
            "count": layout.count - 1,
            "nearest distance": np.where(np.isfinite(nearest), distance, -1),
            "position": 3 * row + column,
        }

    def draw(self, index: Int[np.ndarray, "B"]) -> UInt8[Tensor, "B C H W"]:
        """The scenes ``index``."""
        layout = self.layout(index)
        canvas = self._ground(index)
        scene, place = np.nonzero(np.arange(MOST_OBJECTS) < layout.count[:, None])
        u = draws.uniform("scene object", *self._key(index[scene])[..., None], place[:, None], np.arange(5))
        objects, corners = self._objects(layout.centres[scene, place], layout.sides[scene, place], u)
        tones = self._tones(index[scene], place, u[:, 4])
        # The dark object is laid down last, so that none hides it.
        for one in range(len(scene) - 1, -1, -1):
            _lay(canvas[scene[one]], objects[one], tones[one], *corners[one].tolist())
        return torch.from_numpy((canvas * 255).round().clip(0, 255).astype(np.uint8))

    def _key(self, index: Int[np.ndarray, "B"]) -> np.ndarray:
        return np.stack([np.full_like(index, self.seed), np.full_like(index, self._part), index])

    def _ground(self, index: Int[np.ndarray, "B"]) -> Float32[np.ndarray, "B C H W"]:
        """Smooth noise with an orientation: a few waves about one direction, on a level of each channel's own."""
        height, width = self.size
        u = draws.uniform("scene ground", *self._key(index)[..., None, None], np.arange(_WAVES)[:, None], np.arange(4))
        direction = math.pi * (u[:, :1, 0] + 0.25 * (u[..., 1] - 0.5))
        frequency = 2 * math.pi * (0.7 + 4.3 * u[..., 2])[..., None]
        down = (np.arange(height) + 0.5) / self._unit * frequency * np.sin(direction)[..., None]
        across = (np.arange(width) + 0.5) / self._unit * frequency * np.cos(direction)[..., None]
        down += 2 * math.pi * u[..., 3, None]
        # sin(a + b) = sin a cos b + cos a sin b: the whole wave as a product of two thin matrices.
        rows = np.concatenate([np.sin(down), np.cos(down)], 1).astype(np.float32)
        columns = np.concatenate([np.cos(across), np.sin(across)], 1).astype(np.float32)
        waves = rows.transpose(0, 2, 1) @ columns / math.sqrt(_WAVES / 2)  # of variance 1
        v = draws.uniform("scene light", *self._key(index)[..., None], np.arange(1 + self.channels)).astype(np.float32)
        contrast, level = 0.02 + 0.05 * v[:, :1], 0.33 + 0.15 * v[:, 1:]
        noise = np.clip(waves, -2.5, 2.5)[:, None] * contrast[..., None, None]
        return np.ascontiguousarray(level[..., None, None] + noise)

    def _objects(
        self, centres: Float64[np.ndarray, "O 2"], sides: Float64[np.ndarray, "O"], u: Float64[np.ndarray, "O 5"]
    ) -> tuple[Float32[np.ndarray, "O w w"], Int64[np.ndarray, "O 2"]]:
        """Each item turned, mirrored and sized in a square window of pixels, and the window's top left corner."""
        items = torch.from_numpy(self.items[(u[:, 0] * len(self.items)).astype(np.int64)])[:, None].float() / 255
        base = min(items.shape[-1], math.ceil(_SIDES[1] * self._unit))
        if base < items.shape[-1]:
            items = F.interpolate(items, (base, base), mode="bilinear", antialias=True, align_corners=False)
        window = 2 * math.ceil(_SIDES[1] * self._unit * math.sqrt(0.5)) + 1
        middle, half = centres * self._unit, sides * self._unit / 2
        corners = np.floor(middle).astype(np.int64) - window // 2
        shift = (corners + window / 2 - middle) / half[:, None]
        angle, mirror = (u[:, 1] - 0.5) * math.radians(40), np.where(u[:, 2] < 0.5, -1.0, 1.0)
        cos, sin, stretch = np.cos(angle), np.sin(angle), window / 2 / half
        across = np.stack([cos * stretch, sin * stretch, cos * shift[:, 1] + sin * shift[:, 0]], -1) * mirror[:, None]
        down = np.stack([-sin * stretch, cos * stretch, cos * shift[:, 0] - sin * shift[:, 1]], -1)
        theta = torch.from_numpy(np.stack([across, down], 1).astype(np.float32))
        grid = F.affine_grid(theta, [len(items), 1, window, window], align_corners=False)
        return F.grid_sample(items, grid, align_corners=False)[:, 0].numpy(), corners

    def _tones(
        self, index: Int[np.ndarray, "O"], place: Int64[np.ndarray, "O"], light: Float64[np.ndarray, "O"]
    ) -> Float32[np.ndarray, "O C"]:
        """The colour of each object's brightest part: dark for the first, bright for the others."""
        shape = self._key(index)[..., None]
        hue = 1 - 0.6 * draws.uniform("scene hue", *shape, place[:, None], np.arange(self.channels))
        bright = (0.75 + 0.25 * light)[:, None] * hue / hue.max(1, keepdims=True)
        dark = (0.02 + 0.06 * light)[:, None] * hue
        return np.where(place[:, None] == 0, dark, bright).astype(np.float32)


def _layout(key: np.ndarray, extents: tuple[float, float]) -> Layout:
    """Centres one after the other: the first of several tries that is clear of all before, else the clearest."""
    place, tries = np.arange(MOST_OBJECTS)[:, None], np.arange(2 * _TRIES)
    count = 1 + (draws.uniform("scene count", *key) * MOST_OBJECTS).astype(np.int64)
    sides = draws.uniform("scene side", *key[..., None], place[:, 0])
    sides = _SIDES[0] + (_SIDES[1] - _SIDES[0]) * sides
    u = draws.uniform("scene place", *key[..., None, None], place, tries).reshape(*sides.shape, _TRIES, 2)
    tried = _MARGIN + u * (np.array(extents) - 2 * _MARGIN)
    centres = tried[:, :, 0].copy()
    row = np.arange(len(centres))
    for here in range(1, MOST_OBJECTS):
        apart = np.linalg.norm(tried[:, here, :, None] - centres[:, None, :here], axis=-1)
        gap = (apart / ((sides[:, here, None] + sides[:, :here]) / 2)[:, None]).min(-1)
        clear = gap >= _GAP
        chosen = np.where(clear.any(1), clear.argmax(1), gap.argmax(1))
        centres[:, here] = tried[row, here, chosen]
    return Layout(count=count, centres=centres, sides=sides)


@lru_cache(maxsize=8)
def distance_limits(extents: tuple[float, float]) -> Float64[np.ndarray, "limits"]:
    """The seven limits between the classes of the nearest distance, for scenes of these extents.

    They are quantiles of layouts drawn for this alone, so no scene's class depends on the others judged with it.
    """
    index = np.arange(_REFERENCE)
    nearest = _layout(np.stack([np.zeros_like(index), np.full_like(index, 2), index]), extents).nearest()
    share = np.arange(1, DISTANCE_CLASSES) / DISTANCE_CLASSES
    return np.quantile(nearest[np.isfinite(nearest)], share)


def _lay(
    canvas: Float32[np.ndarray, "C H W"],
    item: Float32[np.ndarray, "w w"],
    tone: Float32[np.ndarray, "C"],
    top: int,
    left: int,
) -> None:
    """Lay an object over the canvas, in place; what is outside is cut off."""
    above, before = max(0, -top), max(0, -left)
    under = canvas[:, max(0, top) : top + len(item), max(0, left) : left + len(item)]
    seen = item[above : above + under.shape[1], before : before + under.shape[2]]
    opacity = np.minimum(1, 4 * seen)
    under += opacity * (tone[:, None, None] * (0.5 + 0.5 * seen) - under)

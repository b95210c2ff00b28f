"""Features of the patches of images that have masks: the encoder's, a random one's, and the pixels themselves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from openjepa import draws
from openjepa.assessment.cache import Entry, FeatureCache, key_of
from openjepa.assessment.encoders import Kind, Network, Panel
from openjepa.assessment.extraction import TOKEN_BYTES, preparation
from openjepa.data.augmentation import to_unit
from openjepa.data.base import BadImage
from openjepa.data.loader import BadRecord
from openjepa.data.masks import MaskedImages
from openjepa.errors import InputError
from openjepa.evaluation.dense import Patches, class_shares
from openjepa.evaluation.features import patch_pixels
from openjepa.evaluation.suite import PIXELS, RANDOM, TARGET, TOKENS
from openjepa.progress import progress

# What is judged of another library's encoder, whose rows elsewhere are named after its class token or a mean.
PATCH_TOKENS = "encoder (patch tokens)"
# Patches to learn on, over all images: enough for a linear layer, and 60 MB at a width of 768.
_PATCHES = 20_000
_BATCH = 32


class PatchEncoder(NamedTuple):
    """A function from prepared images to features of all their patches, and what network it is, for the cache; pixels
    are no network, and are not kept."""

    encode: Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B N D"]]
    identity: Any = None


class Encoded(NamedTuple):
    """Some images: their numbers, as they are prepared, their masks, and every encoder's features of their patches."""

    numbers: Int64[np.ndarray, "B"]
    images: Float[Tensor, "B C H W"]
    masks: UInt8[Tensor, "B H W"]
    features: dict[str, Float[Tensor, "B K D"]]


@dataclass(frozen=True, kw_only=True)
class MaskedView:
    """The images as the encoders see them; ``bad`` takes those that cannot be read, when they are met.

    Attributes:
        seed: of the patches that are drawn.
        cache: where the encoders' features are looked for and kept.
    """

    panel: Panel
    data: MaskedImages
    seed: int
    cache: FeatureCache | None = None
    bad: list[BadRecord] = field(default_factory=list)

    @cached_property
    def encoders(self) -> dict[str, PatchEncoder]:
        """By the names of their rows, the judged one first."""
        return patch_encoders(self.panel)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return grid_of(self.panel)

    def encoded(self, chosen: Int64[np.ndarray, "n"], count: int | None = None) -> Iterator[Encoded]:
        """The images with features of all patches, or of the ``count`` that are drawn: from the cache, else computed
        and, when all images are through, kept."""
        keys = self._keys(chosen, count)
        found = {name: None if self.cache is None else self.cache.read(key, chosen) for name, key in keys.items()}
        fresh: dict[str, list[Tensor]] = {name: [] for name, entry in found.items() if entry is None}
        samples, met = [np.empty(0, np.int64)], len(self.bad)
        for numbers, images, masks in self._batches(chosen):
            features = {}
            for name, encoder in self.encoders.items():
                kept = _kept(found.get(name), numbers)
                if kept is None:
                    every = encoder.encode(images)
                    kept = every if count is None else taken(every, self.drawn(numbers, count))
                if name in fresh:
                    fresh[name].append(kept)
                features[name] = kept
            samples.append(numbers)
            yield Encoded(numbers, images, masks, features)
        left_out = {one.sample: one.reason for one in self.bad[met:]}
        for name, parts in fresh.items():
            if self.cache is not None and parts:
                entry = Entry(values=torch.cat(parts).numpy(), samples=np.concatenate(samples), left_out=left_out)
                facts = {"data": self.data.images.name, "features": name, "view": "patches"}
                self.cache.write(keys[name], entry, facts)

    def drawn(self, numbers: Int64[np.ndarray, "B"], count: int) -> Int64[Tensor, "B K"]:
        """Which patches of each image to learn on, ``count`` of them if it has so many, in raster order."""
        key = draws.bits("patches to learn on", self.seed, numbers[:, None], np.arange(self.grid[0] * self.grid[1]))
        return torch.from_numpy(np.sort(np.argsort(key, axis=1)[:, :count], axis=1))

    def _batches(
        self, chosen: Int64[np.ndarray, "n"]
    ) -> Iterator[tuple[Int64[np.ndarray, "B"], Float[Tensor, "B C H W"], UInt8[Tensor, "B H W"]]]:
        """Numbers, prepared images and masks; an image that cannot be read is left out."""
        with progress("images") as advance:
            for start in range(0, len(chosen), _BATCH):
                numbers, images, masks = [], [], []
                for number in chosen[start : start + _BATCH].tolist():
                    try:
                        pixels, mask = self.data.read(number, self.panel.preprocessing)
                    except BadImage as error:
                        self.bad.append(BadRecord(number, error.reference, error.reason, -1))
                        continue
                    numbers.append(number)
                    images.append(to_unit(pixels))
                    masks.append(torch.from_numpy(mask))
                if numbers:
                    yield np.array(numbers), torch.stack(images), torch.stack(masks)
                advance(min(start + _BATCH, len(chosen)), len(chosen))

    def _keys(self, chosen: Int64[np.ndarray, "n"], count: int | None) -> dict[str, str]:
        """What each encoder's features are kept by; nothing without a cache, or where they are too many to hold."""
        tokens, width = self.panel.tokens
        if self.cache is None or 4 * len(chosen) * (count or tokens) * width > TOKEN_BYTES:
            return {}
        made = [preparation(self.panel.preprocessing), self.data.images.content(chosen), chosen.tolist()]
        made.append(None if count is None else [count, self.seed])
        encoders = {name: encoder.identity for name, encoder in self.encoders.items()}
        return {name: key_of("patches", one, *made) for name, one in encoders.items() if one is not None}


def _kept(entry: Entry | None, numbers: Int64[np.ndarray, "B"]) -> Float[Tensor, "B K D"] | None:
    """The features of these images, where the entry has them all."""
    if entry is None or not np.isin(numbers, entry.samples).all():
        return None
    return torch.from_numpy(entry.values[np.searchsorted(entry.samples, numbers)])


def taken(tokens: Float[Tensor, "B N D"], index: Int64[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """Some of the patches of each image."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))


def grid_of(panel: Panel) -> tuple[int, int]:
    """Rows and columns of the encoder's tokens, each of which stands for a patch of the same size.

    Raises:
        InputError: its tokens are on no grid that is known, or on one that does not divide its input.
    """
    size = panel.preprocessing.size
    if panel.grid is None:
        raise InputError(
            f"--segmentation needs features on a grid, and which places this encoder's {panel.tokens[0]} tokens for "
            f"{size[0]} x {size[1]} px stand for is not known"
        )
    rows, columns = panel.grid
    if size[0] % rows or size[1] % columns:
        raise InputError(
            f"--segmentation needs features of equal patches, and this encoder's grid of {rows} x {columns} does not "
            f"divide its input of {size[0]} x {size[1]} px evenly"
        )
    return rows, columns


def patch_of(panel: Panel) -> tuple[int, int]:
    """Height and width in pixels of what each of the encoder's tokens stands for.

    Raises:
        InputError: as :func:`grid_of`.
    """
    (height, width), (rows, columns) = panel.preprocessing.size, grid_of(panel)
    return height // rows, width // columns


def patch_encoders(panel: Panel) -> dict[str, PatchEncoder]:
    """Features of every patch, three ways: the encoder's, a random one's, and its pixels (averaged to at most as many
    as of a whole image). The pixels are without the patch's place, which both encoders know.

    Raises:
        InputError: the encoder's features are not of patches.
    """
    grid = grid_of(panel)

    def pixels(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        # Normalised, so that cosines tell bright from dark: without a mean taken off, all pixels point one way.
        return patch_pixels(panel.preprocessing.normalise(images), grid)

    found = {}
    for network in panel.networks:
        for kind in (kind for kind in network.kinds if kind.view == TOKENS and kind.subject != PIXELS):
            name = kind.subject if kind.subject in (TARGET, RANDOM) else PATCH_TOKENS
            found[name] = PatchEncoder(_tokens(network, kind), network.identity)
    return found | {PIXELS: PatchEncoder(pixels)}


def _tokens(network: Network, kind: Kind) -> Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B N D"]]:
    return lambda images: network.encode(images, [kind])[kind].cpu()


@torch.inference_mode()
def patches_to_learn(view: MaskedView, chosen: Int64[np.ndarray, "n"]) -> dict[str, Patches]:
    """Patches of the images to learn on, the same number of each image, under every encoder."""
    per_image = -(-_PATCHES // len(chosen))
    values: dict[str, list[Tensor]] = {name: [] for name in view.encoders}
    shares, owners = [], []
    for numbers, _, masks, features in view.encoded(chosen, per_image):
        index = view.drawn(numbers, per_image)
        share = class_shares(masks, len(view.data.values), patch_of(view.panel))
        shares.append(taken(share, index).flatten(0, 1))
        owners.append(torch.from_numpy(numbers).repeat_interleave(index.shape[1]))
        for name, given in features.items():
            values[name].append(given.flatten(0, 1))
    if not shares:
        raise InputError(f"none of the images in {view.data.images.name} can be read")
    share, owner = torch.cat(shares), torch.cat(owners)
    labelled = share.sum(1) > 0
    if not labelled.any():
        raise InputError("no pixel of the images to learn on is labelled: every mask holds 255 there")
    return {
        name: Patches(values=torch.cat(parts), shares=share, image=owner).take(labelled)
        for name, parts in values.items()
    }

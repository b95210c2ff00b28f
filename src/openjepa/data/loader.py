"""Batches in an order that is a function of (seed, step): the same for any number of workers or processes."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from openjepa import draws
from openjepa.data.augmentation import NUMBERS, Augmentation, Preprocessing, augment, augment_array
from openjepa.data.base import BadImage, Picture, Source
from openjepa.data.idx import ArraySource
from openjepa.data.pixels import Pixels, alike, with_channels
from openjepa.data.workers import LoaderError, NoSharedMemory, iterate
from openjepa.errors import InputError
from openjepa.masks import Masks

__all__ = ["BadRecord", "Batch", "LoaderError", "Masking", "NoSharedMemory", "ordered_batches", "training_batches"]

# A replacement that is bad too is replaced in turn; so many in a row mean that hardly any image is good.
_REPLACEMENTS = 32
# Up to this extent (pixels), images of 8 bits are cropped and resized by matrix products, many at a time, and kept in
# memory once decoded: so many bytes of them in all processes that read, in blocks of so many.
_SMALL, _ROOM, _BLOCK = 64, 2**29, 2**22

Masking = Callable[[Int64[np.ndarray, "B"], int], Masks]


class BadRecord(NamedTuple):
    """An image that could not be used: its number, where it is, why, and the image that took its place (-1: none)."""

    sample: int
    reference: str
    reason: str
    replacement: int


@dataclass(frozen=True)
class Batch:
    """A batch of images, not normalised.

    Attributes:
        images: uint8, or float32 in [0, 1] when one of them has more than 8 bits.
        samples: the images' numbers in the source.
        labels: their class numbers, -1 for none.
        masks: what ``masking`` gave for the images of each micro-batch; none without a ``masking``.
        bad: the images that could not be used.
    """

    images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
    samples: Int64[Tensor, "B"]
    labels: Int64[Tensor, "B"]
    masks: tuple[Masks, ...] = ()
    bad: tuple[BadRecord, ...] = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """A copy on ``device``."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """A copy in pinned memory, for an asynchronous transfer to a GPU."""
        return self._map(lambda part: part.pin_memory())

    def share_memory_(self) -> "Batch":
        """The same, moved to memory that other processes see."""
        return self._map(lambda part: part.share_memory_())

    def _map(self, change: Callable[[Any], Any]) -> "Batch":
        return replace(
            self,
            images=change(self.images),
            samples=change(self.samples),
            labels=change(self.labels),
            masks=tuple(change(own) for own in self.masks),
        )


class _Steps(Sampler[int]):
    """The steps of a run from ``start`` on, without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while True:
            yield step
            step += 1


class _Kept:
    """Small decoded images by their numbers, in few large blocks, as long as there is room (bytes).

    Anything that the C library allocates for each of them, were it an array's 48 bytes, would lie in the room that a
    decoder had for a moment, so that the next one needs other room: gigabytes for images of 150 MB.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._blocks: list[UInt8[np.ndarray, "P"]] = []
        self._used = _BLOCK + 1  # so that the first image opens a block
        self._places: dict[int, tuple[int, int, tuple[int, ...]]] = {}

    def get(self, sample: int) -> UInt8[np.ndarray, "H W C"] | None:
        """The image, if it is kept."""
        if sample not in self._places:
            return None
        block, start, shape = self._places[sample]
        return self._blocks[block][start : start + math.prod(shape)].reshape(shape)

    def keep(self, sample: int, image: UInt8[np.ndarray, "H W C"]) -> None:
        """Copy the image, if there is room."""
        if image.nbytes > min(self.room, _BLOCK):
            return
        if self._used + image.nbytes > _BLOCK:
            self._blocks.append(np.empty(_BLOCK, np.uint8))
            self._used = 0
        self._places[sample] = (len(self._blocks) - 1, self._used, image.shape)
        self._blocks[-1][self._used : self._used + image.nbytes] = image.ravel()
        self._used += image.nbytes
        self.room -= image.nbytes


@dataclass
class _TrainingBatches(Dataset[Batch | InputError]):
    """The training batch of each step, by the step's number; read in the workers."""

    source: Source
    preprocessing: Preprocessing
    augmentation: Augmentation
    masking: Masking | None
    batch: int
    seed: int
    rank: int
    world: int
    pieces: int
    kept: _Kept

    def __post_init__(self) -> None:
        self._order: tuple[int, np.ndarray] | None = None
        self._at_least = self.augmentation.at_least(self.preprocessing.size)

    def __getitem__(self, step: int) -> Batch | InputError:
        epoch, place = divmod(step, len(self.source) // self.batch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, draws.permutation(len(self.source), "order", self.seed, epoch))
        share = self.batch // self.world
        start = place * self.batch + self.rank * share
        wanted = self._order[1][start : start + share]
        u = draws.uniform("crop", self.seed, epoch, wanted[:, None], np.arange(NUMBERS))
        try:
            images, samples, bad = self._images(wanted, epoch, u)
        except InputError as error:
            return error
        masking, parts = self.masking, np.split(samples, self.pieces)
        masks = () if masking is None else tuple(masking(part, epoch) for part in parts)
        return Batch(images, torch.from_numpy(samples), _labels(self.source, samples), masks, bad)

    def _images(
        self, wanted: Int64[np.ndarray, "B"], epoch: int, u: Float64[np.ndarray, "B U"]
    ) -> tuple[Shaped[Tensor, "B C H W"], Int64[np.ndarray, "B"], tuple[BadRecord, ...]]:
        """The augmented images, the numbers of those that were taken, and what was wrong with the others."""
        if isinstance(self.source, ArraySource) and self._at_once(self.source.images[0]):
            return augment_array(self.source.images[wanted], self.preprocessing, self.augmentation, u), wanted, ()
        found = [self._image(sample, epoch, u[row]) for row, sample in enumerate(wanted.tolist())]
        pixels = self._augmented([picture for picture, *_ in found], [own for _, own, *_ in found])
        samples = np.array([sample for *_, sample, _ in found], np.int64)
        return _stacked(pixels, self.preprocessing), samples, tuple(record for *_, record in found if record)

    def _at_once(self, image: np.ndarray) -> bool:
        """Whether :func:`augment_array` can take arrays like this one as they are."""
        has, wanted = image.shape[2], self.preprocessing.channels
        return _is_small(image) and (has == wanted or (has, wanted) == (1, 3))

    def _augmented(self, pictures: list[Picture], u: list[Float64[np.ndarray, "U"]]) -> list[Pixels]:
        """Each picture cropped by its own numbers; small ones of one size together."""
        alike: dict[tuple[int, ...], dict[int, np.ndarray]] = {}
        for place, picture in enumerate(pictures):
            if isinstance(picture, np.ndarray) and _is_small(picture):
                alike.setdefault(picture.shape, {})[place] = picture
        done: dict[int, Pixels] = {}
        for group in alike.values():
            images, numbers = np.stack(list(group.values())), np.stack([u[place] for place in group])
            done |= zip(group, augment_array(images, self.preprocessing, self.augmentation, numbers), strict=True)
        return [
            done[place] if place in done else augment(picture, self.preprocessing, self.augmentation, u[place])
            for place, picture in enumerate(pictures)
        ]

    def _read(self, sample: int) -> Picture:
        """The image with its channels as they are wanted; a small one is decoded once, and kept as long as room is."""
        if (before := self.kept.get(sample)) is not None:
            return before
        image = with_channels(self.source.read(sample, at_least=self._at_least), self.preprocessing.channels)
        if isinstance(image, Image.Image) and image.mode in ("L", "RGB") and max(image.size) <= _SMALL:
            image = np.asarray(image).reshape(image.height, image.width, -1)
        if isinstance(image, np.ndarray) and _is_small(image):
            self.kept.keep(sample, image)
        return image

    def _image(
        self, sample: int, epoch: int, u: Float64[np.ndarray, "U"]
    ) -> tuple[Picture, Float64[np.ndarray, "U"], int, BadRecord | None]:
        """The image or its replacement where it is bad, the numbers for its crop, and which it is."""
        bad: list[BadImage] = []
        chosen = sample
        for attempt in range(_REPLACEMENTS + 1):
            try:
                image = self._read(chosen)
            except BadImage as error:
                bad.append(BadImage(self.source.reference(chosen), error.reason))
                chosen = int(draws.bits("replacement", self.seed, epoch, sample, attempt)[0] % len(self.source))
                u = draws.uniform("crop", self.seed, epoch, chosen, np.arange(NUMBERS))
            else:
                record = BadRecord(sample, bad[0].reference, bad[0].reason, chosen) if bad else None
                return image, u, chosen, record
        raise InputError(
            f"{len(bad)} images in a row cannot be used, so most of {self.source.name} is damaged or of another kind; "
            f"the first: {bad[0]}"
        )


@dataclass
class _OrderedBatches(Dataset[Batch | InputError]):
    """Batches of chosen images in their order, without augmentation; bad images are left out."""

    source: Source
    preprocessing: Preprocessing
    indices: Int64[np.ndarray, "n"]
    batch: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __getitem__(self, number: int) -> Batch | InputError:
        try:
            return self._batch(number)
        except InputError as error:
            return error

    def _batch(self, number: int) -> Batch:
        samples, images, bad = [], [], []
        for sample in self.indices[number * self.batch : (number + 1) * self.batch].tolist():
            try:
                image = self.source.read(sample, at_least=self.preprocessing.at_least)
                images.append(self.preprocessing.fit(image))
                samples.append(sample)
            except BadImage as error:
                bad.append(BadRecord(sample, self.source.reference(sample), error.reason, -1))
        numbers = np.array(samples, np.int64)
        pixels = _stacked(images, self.preprocessing)
        return Batch(pixels, torch.from_numpy(numbers), _labels(self.source, numbers), bad=tuple(bad))


def training_batches(
    source: Source,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    masking: Masking | None,
    *,
    batch: int,
    seed: int,
    workers: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    pieces: int = 1,
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """The training batches from ``start_step`` on, without end; the images of an epoch that fill no batch are left out.

    Args:
        source: the images.
        preprocessing: size and channels.
        augmentation: the random crop.
        masking: called with the images' numbers and the epoch, in the worker.
        batch: images of a step over all processes; each of the ``world`` gets an equal share.
        seed: the run's seed.
        workers: processes that read; 0 reads in this one.
        start_step: the first step; what came before is not read.
        rank: which share.
        world: number of shares.
        pieces: micro-batches of a share; each has masks of its own.
        pin: whether to put the batches in pinned memory.

    Raises:
        InputError: there are fewer images than a batch holds, or hardly any can be used.
        LoaderError: a worker was killed, or found no shared memory for a batch (:class:`NoSharedMemory`).
    """
    if batch < 1 or batch % (world * pieces) or not 0 <= rank < world:
        raise ValueError(
            f"a batch of {batch} cannot be shared by {world} processes with {pieces} micro-batches (rank {rank})"
        )
    if len(source) < batch:
        raise InputError(f"{source.name} has {len(source)} images, fewer than a batch of {batch}; take a smaller batch")
    source.prepare()
    kept = _Kept(_ROOM // max(1, workers))
    dataset = _TrainingBatches(source, preprocessing, augmentation, masking, batch, seed, rank, world, pieces, kept)
    return iterate(dataset, _Steps(start_step), workers, pin)


def ordered_batches(
    source: Source,
    preprocessing: Preprocessing,
    indices: Sequence[int] | Int64[np.ndarray, "n"] | None = None,
    *,
    batch: int,
    workers: int,
    pin: bool = False,
) -> Iterator[Batch]:
    """The images ``indices`` (None: all) in order, fitted without augmentation; bad ones are left out and reported.

    Raises:
        InputError: the files cannot be read.
        LoaderError: a worker was killed, or found no shared memory for a batch (:class:`NoSharedMemory`).
    """
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    dataset = _OrderedBatches(source, preprocessing, chosen, batch)
    return iterate(dataset, range(len(dataset)), workers, pin)


def _is_small(image: np.ndarray) -> bool:
    """Whether an array "H W C" is of 8 bits and small, so that matrix products are the fastest way to resize it."""
    return image.dtype == np.uint8 and max(image.shape[:2]) <= _SMALL


def _stacked(images: list[Tensor], preprocessing: Preprocessing) -> Shaped[Tensor, "B C H W"]:
    """Images as one tensor; where one has more than 8 bits, all become floats."""
    if not images:
        return torch.empty((0, preprocessing.channels, *preprocessing.size), dtype=torch.uint8)
    return torch.stack(alike(images))


def _labels(source: Source, samples: Int64[np.ndarray, "B"]) -> Int64[Tensor, "B"]:
    labels = source.labels
    return torch.from_numpy(np.full(len(samples), -1, np.int64) if labels is None else labels[samples])

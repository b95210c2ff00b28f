"""A trained encoder for somebody's own images: ``openjepa.load(path).encode(images)``."""

import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from openjepa.cores import cores
from openjepa.data.arrays import as_picture
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import BadImage, Picture
from openjepa.data.decode import decode, standard
from openjepa.data.opening import upright
from openjepa.data.pixels import Pixels, alike
from openjepa.encoder import Encoder
from openjepa.errors import InputError
from openjepa.files import expanded
from openjepa.grid import TokenGrid
from openjepa.interop import huggingface

ImageLike = str | PathLike[str] | Image.Image | np.ndarray | Tensor

# Images that cannot be used, by their numbers, and why.
Bad = list[tuple[int, InputError]]
_MOST_READERS = 16


class Pretrained:
    """An encoder with its preprocessing.

    Made of any :class:`~openjepa.encoder.Encoder`, as one that a loop of one's own has trained, and of the
    :class:`~openjepa.data.augmentation.Preprocessing` that its images had; a ``size`` that is another multiple of the
    patch than the trained one has the encoder see more or fewer tokens.

    Attributes:
        encoder: the network (the target encoder of a run).
        preprocessing: how an image becomes its input.
    """

    def __init__(self, encoder: Encoder, preprocessing: Preprocessing) -> None:
        self.encoder, self.preprocessing = encoder.eval(), preprocessing

    def to(self, device: torch.device | torch.dtype | str) -> "Pretrained":
        """Move the encoder, or have it compute in another precision (a ``torch.dtype``); features come back to the CPU
        and as float32 all the same."""
        self.encoder.to(device)
        return self

    def save(self, directory: str | PathLike[str]) -> None:
        """Write a Hugging Face directory that :func:`load`, ``transformers`` and ``openjepa evaluate`` read.

        Weights are written as float32. An earlier export there is replaced, unless its README.md or weights were
        changed since.

        Raises:
            InputError: ``directory`` holds something else, or an export that was changed, or cannot be written.
        """
        huggingface.export(self.encoder, expanded(directory), preprocessing=self.preprocessing)

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return self.encoder.table.device

    def encode(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        tokens: bool = False,
        blocks: int = 1,
        batch: int = 64,
        unreadable: str = "raise",
    ) -> Float[np.ndarray, "n *S O"]:
        """Features as float32: the average over tokens, (n, O), or every token's on its grid, (n, *grid, O).

        Files are read by several threads while the batch before them is computed, a large JPEG at a fraction of its
        size that still covers the encoder's, as in an evaluation (one that Pillow has opened is decoded whole).

        Args:
            images: one or many of: paths, PIL images, arrays (H W, or H W C; uint8, uint16, int16 of 16 bits,
                bool, or float in [0, 1]), tensors (C H W; the same types); an array or tensor with one more axis in
                front is many. A file of floats above 2 or of wide integers is scaled by its own largest value (a folder
                to train on, by that of many): to be sure, save uint8 or uint16.
            blocks: of the last so many blocks, each through the final norm, side by side: O is ``blocks`` times the
                width D. With 4 a linear probe reads several points more (I-JEPA, app. A.2; benchmarks/README.md).
            batch: images computed at once; it does not change the features but for rounding.
            unreadable: what becomes of an image that cannot be read or used: ``raise`` an error, or ``nan``, features
                of NaN in its place, and a warning that counts them and names the first.

        Raises:
            InputError: an image that cannot be read or used; the message names its path, or its number from 0.
        """
        if batch < 1:
            raise InputError(f"at least one image must be computed at once, got batch={batch}")
        depth = max(1, self.encoder.config.depth)
        if not 1 <= blocks <= depth:
            raise InputError(f"blocks must be from 1 to {depth}, as many as this encoder has, got {blocks}")
        if unreadable not in ("raise", "nan"):
            raise InputError(f"unreadable must be 'raise' or 'nan', got {unreadable!r}")
        grid = TokenGrid.of(self.preprocessing.size, self.encoder.config.patch).shape
        parts: list[Tensor] = []
        bad: Bad | None = [] if unreadable == "nan" else None
        with _readers() as pool:
            for x in self._batches(images, batch, pool, bad):
                features = self.features(x, blocks)
                parts.append(features.unflatten(1, grid) if tokens else features.mean(1))
                if len(parts) > 1:  # a GPU is waited for when it has its next batch
                    parts[-2] = parts[-2].cpu()
        if not parts:
            raise InputError("there are no images to encode")
        found = torch.cat([part.cpu() for part in parts]).numpy()
        if bad:
            warnings.warn(f"{len(bad)} of {len(found)} images are NaN, the first: {min(bad)[1]}", stacklevel=2)
        return found

    def _batches(self, images: Any, batch: int, pool: Executor, bad: Bad | None) -> Iterator[Shaped[Tensor, "B C H W"]]:
        """The fitted images in order; while one batch is used, the next is read. ``bad`` as :meth:`_fit` has it."""
        ready: Future[Tensor] | None = None
        for group in _groups(self._fitted(images, pool, bad), batch):
            read = all(image.done() and image.exception() is None for image in group)  # as what is no path is
            following = _settled(_stacked(group)) if read else pool.submit(_stacked, group)
            if ready is not None:
                yield ready.result()
            ready = following
        if ready is not None:
            yield ready.result()

    def _fitted(self, images: Any, pool: Executor, bad: Bad | None) -> Iterator[Future[Pixels]]:
        """Every fitted image in order, perhaps not read yet.

        What is no path is fitted here: its giver may change or close it as soon as the next one is asked for. An error
        here comes as the last image's, so that one of an earlier image is met first.
        """
        try:
            for number, image in enumerate(_each(images)):
                if isinstance(image, str | PathLike):
                    yield pool.submit(self._fit, number, image, bad)
                else:
                    yield _settled(self._fit(number, image, bad))
        except Exception as error:  # noqa: BLE001 - raised where the image is waited for
            yield _settled(error)

    def _fit(self, number: int, given: ImageLike, bad: Bad | None) -> Pixels:
        """An image as the encoder's input; one that cannot be used is NaN where there is a list ``bad`` to note it."""
        try:
            path = isinstance(given, str | PathLike)
            picture = decode(given, str(given), self.preprocessing.size) if path else _picture(given)
            return self.preprocessing.fit(picture)
        except (BadImage, OSError) as error:  # OSError: a Pillow image reads its file only now
            name = str(given) if isinstance(given, str | PathLike) else f"image {number}"
            reason = error.reason if isinstance(error, BadImage) else f"cannot be decoded: {error}"
            if isinstance(given, np.ndarray | Tensor) and given.ndim == 3 and "channels" in reason:
                reason += _about_axes(given, self.preprocessing.channels)
            if isinstance(given, str | PathLike) and os.path.isdir(given):
                reason = f"is a folder: give its files, as sorted(Path({name!r}).rglob('*.jpg'))"
            told = InputError(f"{name} {reason}")
            if bad is None:
                raise told from error
            bad.append((number, told))
            return torch.full((self.preprocessing.channels, *self.preprocessing.size), torch.nan)

    @torch.inference_mode()
    def features(self, x: Shaped[Tensor, "B C H W"], blocks: int = 1) -> Float[Tensor, "B N O"]:
        """Every token's features of preprocessed images (uint8, or float in [0, 1], not normalised), on the device.

        ``blocks`` as :meth:`encode` has it.
        """
        normalised = self.preprocessing.normalise(x.to(self.device)).to(self.encoder.embed.weight.dtype)
        return torch.cat(self.encoder.last_blocks(normalised, blocks), -1).float()


def load(path: str | PathLike[str]) -> Pretrained:
    """Load a run folder, an imported checkpoint's folder, or a Hugging Face directory with an I-JEPA model.

    Images are prepared in this library's way, whatever the directory says of more than their size, mean and deviation:
    a warning tells where transformers' own image processor would show the encoder others.

    Raises:
        InputError: there is no encoder; the message says what was found.
    """
    folder = expanded(path)
    directory = folder / "encoder" if (folder / "encoder").is_dir() else folder
    if (folder / "experiment.json").is_file() and directory is folder:
        raise InputError(
            f"the run {folder} has no encoder yet: it is written with the first checkpoint, before the first step"
        )
    loaded = huggingface.load(directory)
    config, size = loaded.encoder.config, loaded.preprocessing["size"]
    if len(config.signal) != 2:
        raise InputError(f"{directory} reads signals of {len(config.signal)} axes {config.signal}; images have two")
    if any(extent % patch for extent, patch in zip(size, config.patch, strict=True)):
        raise InputError(f"{directory} prepares images of {size} px, no multiple of the encoder's patch {config.patch}")
    words, native = huggingface.prepared_otherwise(directory)
    if words:
        evaluated = "; `openjepa evaluate` takes the directory's own way" if native else ""
        warnings.warn(
            f"the features will not be transformers' own: the image processor in {directory} {words}, and here the "
            f"largest central part of an image is made {size[0]}x{size[1]} px (bicubic). For its own, give `.encoder` "
            f"the pixel_values of transformers' AutoImageProcessor{evaluated}",
            stacklevel=2,
        )
    return Pretrained(loaded.encoder, Preprocessing.from_json(loaded.preprocessing))


def shown_otherwise(directory: PathLike[str]) -> bool:
    """Whether transformers, with the image processor of a Hugging Face directory with an I-JEPA model, would show the
    encoder other images than :func:`load`, and of a size that it lets it see."""
    return all(huggingface.prepared_otherwise(directory))


def _each(images: Any) -> Iterator[ImageLike]:
    """Every single image of what a person may give, not yet read."""
    if isinstance(images, str | PathLike | Image.Image):
        yield images
    elif isinstance(images, Tensor | np.ndarray):
        single = (3,) if isinstance(images, Tensor) else (2, 3)
        if images.ndim not in (*single, 4):
            axes = "(n) C H W" if isinstance(images, Tensor) else "H W, H W C or n H W C"
            raise InputError(f"images in one {type(images).__name__} have the axes {axes}, got {tuple(images.shape)}")
        yield from [images] if images.ndim in single else images
    elif isinstance(images, Iterable) and not isinstance(images, bytes):
        for one in images:
            yield from _each(one)
    else:
        raise InputError(f"images are paths, PIL images, arrays or tensors, got {type(images).__name__}")


def _about_axes(image: np.ndarray | Tensor, channels: int) -> str:
    """What may be wrong with the axes of one image that has other channels than are wanted."""
    tensor, kind = isinstance(image, Tensor), type(image).__name__
    if image.shape[-1 if tensor else 0] in (1, channels):
        other = (
            "channels last? A tensor is C H W, an array H W C"
            if tensor
            else "channels first? An array is H W C, a tensor C H W"
        )
        return f" (its shape is {tuple(image.shape)}): {other}"
    return f"; many grey images in one {kind} have the axes {'n 1 H W' if tensor else 'n H W 1'}"


def _picture(image: Image.Image | np.ndarray | Tensor) -> Picture:
    """An image as the data room has it: Pillow's, or H W C in uint8, uint16 or float32 in [0, 1].

    Of other types than these, int16 and bool nobody knows what white is, and image by image it would be another.
    """
    if isinstance(image, Image.Image):
        return standard(upright(image), "image")
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        # NumPy has no bfloat16.
        array = (image.float() if image.is_floating_point() else image).permute(1, 2, 0).numpy()
    else:
        array = image[..., None] if image.ndim == 2 else image
    if not array.size:
        raise BadImage("image", f"is empty: its shape is {tuple(image.shape)}")
    if array.dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return array.astype(array.dtype.newbyteorder("="))  # a copy: it is its giver's
    if array.dtype.newbyteorder("=") in (np.bool_, np.int16):  # whose white is known
        return as_picture(array, "image")
    if array.dtype.kind not in "fiu":
        raise BadImage("image", f"holds {array.dtype}, which is no image's: give uint8, uint16, or floats from 0 to 1")
    if array.dtype.kind == "f" and 0 <= array.min() <= array.max() <= 1:
        return array.astype(np.float32)
    raise BadImage(
        "image",
        f"holds {array.dtype} from {array.min()} to {array.max()}: "
        "give uint8, uint16, int16, bool, or floats from 0 to 1 that are not normalised",
    )


def _groups(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class _Process:
    """What reading changes in the whole process, while any call of ``encode`` in any thread reads files.

    Decoding silences warnings for a moment; of several threads that do, each would bring back what another had. And
    PyTorch gives threads that begin the number of threads that was set last, in whatever thread.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._silence, self._threads = warnings.catch_warnings(), 0

    def enter(self) -> int:
        """The number of threads that the calling thread computes with, which it has back when it leaves."""
        with self._lock:
            self._inside += 1
            own = torch.get_num_threads()
            if self._inside == 1:
                self._threads, self._silence = own, warnings.catch_warnings()
                self._silence.__enter__()
                warnings.simplefilter("ignore")
            elif own == 1:  # for it began when a reader had
                own = self._threads
                torch.set_num_threads(own)
            return own

    def leave(self, own: int) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._silence.__exit__(None, None, None)
            torch.set_num_threads(own)


_PROCESS = _Process()


@contextmanager
def _readers() -> Iterator[Executor]:
    """Threads to read images, no more than this process has processor cores; they have ended when this ends."""
    own = _PROCESS.enter()
    # Each with one thread, or it would have as many again for its part of PyTorch's work.
    pool = ThreadPoolExecutor(min(cores(), _MOST_READERS), "reader", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        _PROCESS.leave(own)


def _settled(outcome: Shaped[Tensor, "..."] | Exception) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return future


def _stacked(images: list[Future[Pixels]]) -> Shaped[Tensor, "B C H W"]:
    """Images as one tensor once they are read; where one has more than 8 bits, all become floats."""
    return torch.stack(alike([image.result() for image in images]))

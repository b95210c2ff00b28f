"""Whose features are judged: an encoder of any kind, a random one of its shape, and raw pixels."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from openjepa.assessment.twin import random_twin
from openjepa.data.augmentation import Preprocessing
from openjepa.encoder import Encoder
from openjepa.errors import InputError
from openjepa.evaluation.features import as_floats, patch_pixels, raw_pixels
from openjepa.evaluation.finetune import Backbone
from openjepa.evaluation.suite import LAST, LAST_FOUR, PIXELS, RANDOM, TARGET, TOKENS
from openjepa.files import expanded
from openjepa.grid import TokenGrid, sincos_positions
from openjepa.pretrained import Pretrained, load, shown_otherwise

BLOCKS = 4
# Numbers that say where a patch of raw pixels is; and of what their tokens' width is filled up to a multiple, so that
# heads of a probe are as wide as an encoder's.
_PLACES = _HEAD = 64


class Kind(NamedTuple):
    """One kind of features: the row of the table that they are judged in, and what of the network they are."""

    subject: str
    view: str

    def __str__(self) -> str:
        return f"{self.subject}, {self.view}"


@dataclass(frozen=True, kw_only=True)
class Network:
    """Something that turns a batch of prepared images (not normalised) into one or more kinds of features.

    Attributes:
        identity: what the features depend on besides the images, as JSON values; for the cache.
        kinds: what it can give.
        encode: images and the kinds wanted; gives each of them, "B D", or "B N D" for tokens.
    """

    identity: Any
    kinds: tuple[Kind, ...]
    encode: Callable[[Shaped[Tensor, "B C H W"], Collection[Kind]], dict[Kind, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All that is judged on the same images, and how an image is prepared for it.

    Attributes:
        subjects: the rows that are judged, without the baselines; the first is the main one.
        pixels: height and width of the raw pixels.
        tokens: N and D of the tokens that the judged encoder gives.
        grid: rows and columns of its tokens, which come in raster order; None where they are on none that is known.
        notes: what a reader of the numbers should know, as that a view is of fewer blocks.
        backbones: the encoder judged and the random one, to be fine-tuned.
    """

    subjects: tuple[str, ...]
    networks: tuple[Network, ...]
    preprocessing: Preprocessing
    pixels: tuple[int, int]
    tokens: tuple[int, int]
    grid: tuple[int, int] | None
    device: str
    backbones: tuple[Backbone, Backbone]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of the network judged: its architecture and weights."""
        return hashlib.sha256(json.dumps(self.networks[0].identity, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds of features, the judged encoder's first."""
        return tuple(kind for network in self.networks for kind in network.kinds)


class Reading(NamedTuple):
    """Patch tokens "B N D" after each of the last blocks, through the final norm, and the class token "B D" if any.

    ``grid`` has the rows and columns of the patch tokens, None where they are not known.
    """

    blocks: list[Tensor]
    class_token: Tensor | None
    grid: tuple[int, int] | None


# (a model, normalised images, how many of the last blocks) -> what they hold
Read = Callable[[Any, Float[Tensor, "B C H W"], int], Reading]


def open_panel(path: str | Path, device: torch.device | str = "cpu") -> Panel:
    """The encoder in ``path`` with its baselines: a run, an imported checkpoint, or a Hugging Face or timm directory.

    An I-JEPA that transformers has saved with another image processor than ours is transformers' to run, where it is
    installed, so that its images are prepared as the directory says; else they are in our way, with a warning.

    Raises:
        InputError: there is no encoder, or the library that it needs is not installed.
    """
    folder = expanded(path)
    config = folder / "config.json"
    if config.is_file() and not (folder / "encoder").is_dir() and not (folder / "experiment.json").is_file():
        try:
            content = json.loads(config.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{config} cannot be read as JSON ({error}): copy or download it again") from error
        if isinstance(content, dict) and "openjepa" not in content:
            from openjepa.assessment import foreign

            if content.get("model_type") == "ijepa":
                if find_spec("transformers") is not None and shown_otherwise(folder):
                    return foreign.open_transformers(folder, device)
            elif "model_type" in content:
                return foreign.open_transformers(folder, device)
            elif "architecture" in content:
                return foreign.open_timm(folder, device)
    return panel_of(load(folder).to(device))


def panel_of(pretrained: Pretrained) -> Panel:
    """An encoder of ours, a random one of its shape, and raw pixels."""
    encoder, random = pretrained.encoder, random_twin(pretrained).encoder
    preprocessing, depth = pretrained.preprocessing, encoder.config.depth
    networks = tuple(
        network(one, _read, preprocessing, pretrained.device, name, [asdict(one.config), weights_hash(one)], depth)
        for name, one in ((TARGET, encoder), (RANDOM, random))
    )
    rows, columns = cut(preprocessing.size, encoder.config.patch)
    shape = rows * columns, encoder.config.width
    normalise, width = preprocessing.normalise, encoder.config.width
    mine, other = (Backbone(encoder=one, width=width, normalise=normalise) for one in (encoder, random))
    return panel((TARGET,), networks, (mine, other), preprocessing, shape, (rows, columns), pretrained.device, depth)


def cut(size: Sequence[int], patch: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the whole patches in an image of ``size`` (height, width)."""
    (height, width), (rows, columns) = size, patch
    return height // rows, width // columns


def panel(
    subjects: tuple[str, ...],
    networks: Sequence[Network],
    backbones: tuple[Backbone, Backbone],
    preprocessing: Preprocessing,
    tokens: tuple[int, int],
    grid: tuple[int, int] | None,
    device: torch.device | str,
    depth: int | None,
    notes: Sequence[str] = (),
) -> Panel:
    """Networks and raw pixels; ``depth`` is the number of blocks of the encoder, None where it has none to speak of."""
    baseline, pixels = _pixels(preprocessing, tokens[1], grid)
    if depth is not None and depth < BLOCKS:
        notes = (*notes, f"The encoder has {depth} blocks: where the last four are named, it is all of them.")
    return Panel(
        subjects=subjects,
        networks=(*networks, baseline),
        preprocessing=preprocessing,
        pixels=pixels,
        tokens=tokens,
        grid=grid,
        device=str(device),
        backbones=backbones,
        notes=tuple(notes),
    )


def offsets(preprocessing: Preprocessing) -> tuple[float, ...]:
    """What is taken off the raw pixels of each channel: the mean less three standard deviations, where above 0."""
    return tuple(max(0.0, mean - 3 * std) for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True))


def _pixels(preprocessing: Preprocessing, width: int, grid: tuple[int, int] | None) -> tuple[Network, tuple[int, int]]:
    """Raw pixels, and the (height, width) used: of the whole image and, on a grid that divides it evenly, of its
    patches, averaged to at most ``width`` numbers each (where there are no more channels), with their places beside
    them as an encoder is told them.

    What all images share is taken off the whole ones: of a channel whose mean is more than three spreads (of the
    images trained on) above black, all that is below that, as a camera's offset is, by which all cosines would be 1.
    """
    height, columns = preprocessing.size
    size = raw_pixels(torch.zeros(1, preprocessing.channels, height, columns))[1]
    last, tokens = Kind(PIXELS, LAST), Kind(PIXELS, TOKENS)
    levels = offsets(preprocessing)
    if grid is not None and (height % grid[0] or columns % grid[1] or preprocessing.channels > width):
        grid = None

    def encode(images: Shaped[Tensor, "B C H W"], wanted: Collection[Kind]) -> dict[Kind, Tensor]:
        given: dict[Kind, Tensor] = {}
        if last in wanted:
            level = torch.tensor(levels, device=images.device)[:, None, None]
            given[last] = raw_pixels(as_floats(images) - level)[0]
        if grid is not None and tokens in wanted:
            patches = patch_pixels(preprocessing.normalise(images), grid, width)
            places = sincos_positions(TokenGrid(grid), _PLACES)
            both = torch.cat([patches, places.expand(len(patches), -1, -1)], 2)
            given[tokens] = torch.nn.functional.pad(both, (0, -both.shape[2] % _HEAD))
        return given

    identity, kinds = [PIXELS, list(size), *([list(levels)] if any(levels) else [])], (last,)
    if grid is not None:
        identity, kinds = [*identity, list(grid), width, _HEAD], (last, tokens)
    return Network(identity=identity, kinds=kinds, encode=encode), size


def network(
    model: nn.Module,
    read: Read,
    preprocessing: Preprocessing,
    device: torch.device | str,
    subject: str,
    identity: Any,
    depth: int | None,
    class_subject: str | None = None,
) -> Network:
    """Pooled and token features of a transformer; the class token's stand under ``class_subject``.

    ``depth`` None means that there are no blocks whose outputs could be read one by one.
    """
    last, four, tokens = (Kind(subject, view) for view in (LAST, LAST_FOUR, TOKENS))
    classes = () if class_subject is None else (Kind(class_subject, LAST),)
    kinds = (last, *(() if not depth else (four,)), tokens, *classes)

    @torch.inference_mode()
    def encode(images: Shaped[Tensor, "B C H W"], wanted: Collection[Kind]) -> dict[Kind, Tensor]:
        blocks = min(BLOCKS, depth or 1) if four in wanted else 1
        found = read(model, preprocessing.normalise(images.to(device)), blocks)
        given: dict[Kind, Tensor] = {}
        if last in wanted:
            given[last] = found.blocks[-1].float().mean(1)
        if four in wanted:
            given[four] = torch.cat([block.float().mean(1) for block in found.blocks[-blocks:]], 1)
        if tokens in wanted:
            given[tokens] = found.blocks[-1].float()
        for kind in classes:
            if kind in wanted and found.class_token is not None:
                given[kind] = found.class_token.float()
        return given

    return Network(identity=identity, kinds=kinds, encode=encode)


def _read(encoder: Encoder, x: Float[Tensor, "B C H W"], blocks: int) -> Reading:
    return Reading(encoder.last_blocks(x, blocks), None, cut(x.shape[2:], encoder.config.patch))


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of every named weight and buffer that is saved."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

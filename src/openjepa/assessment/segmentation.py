"""Judge an encoder's patches on somebody's masks, beside a random encoder of its shape and the patches' raw pixels."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image

from openjepa import draws
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Panel
from openjepa.assessment.extraction import BAD_IMAGES, unreadable
from openjepa.assessment.parts import FIFTH_OF_ALL, IN_FOLDS, counted
from openjepa.assessment.patch_features import MaskedView, grid_of, patches_to_learn
from openjepa.assessment.sheets import in_colour, new_picture, painted, sheet
from openjepa.data.base import printable
from openjepa.data.loader import BadRecord
from openjepa.data.masks import MaskedImages, open_masked
from openjepa.errors import InputError
from openjepa.evaluation.dense import Fitted, LinearSegmentation, Patches, PatchKNN, Segmenter, to_pixels
from openjepa.evaluation.folds import WORTH, medians
from openjepa.evaluation.overlap import IGNORE, Overlap
from openjepa.evaluation.split import FOLDS
from openjepa.evaluation.suite import BASELINES, PIXELS, RANDOM
from openjepa.progress import progress

TASK = "segmentation"
# Between the two folders, in what the data are called.
WITH_MASKS = " with the masks in "
_CALLED = {RANDOM: "a random encoder", PIXELS: "raw pixels"}
_FEWEST_IMAGES = 10
# From fewer test images an interval over images says little of how far the mIoU could move.
_FEWEST_TO_TEST = 10
_PICTURED = 6


@dataclass(frozen=True, kw_only=True)
class MaskedParts:
    """Images with masks, which of them are tested on in each fold, and which are learned on for it; without folds
    (there is one) they are two parts."""

    data: MaskedImages
    learn: tuple[Int64[np.ndarray, "_L"], ...]
    test: tuple[Int64[np.ndarray, "_T"], ...]

    @property
    def folded(self) -> bool:
        """Whether each image is tested on, by what was learned on those of the other folds."""
        return len(self.test) > 1

    @property
    def learned(self) -> Int64[np.ndarray, "_L"]:
        """All that are learned on."""
        return np.unique(np.concatenate(self.learn))

    @property
    def every(self) -> Int64[np.ndarray, "_n"]:
        """All that are learned or tested on."""
        return np.unique(np.concatenate([*self.learn, *self.test]))


def open_parts(
    images: Path, masks: Path, *, limit: int = 20_000, seed: int = 0, bad_images: float = BAD_IMAGES
) -> MaskedParts:
    """Images with masks, and which of them :func:`assess_segmentation` learns on and tests on.

    Raises:
        InputError: the folders don't hold images with masks, or too few that can be read.
    """
    with progress("masks") as advance:
        data = open_masked(images, masks, advance)
    if len(data) < _FEWEST_IMAGES:
        raise InputError(f"{len(data)} images with masks are too few to judge by: at least {_FEWEST_IMAGES} are needed")
    order, test_limit = draws.permutation(len(data), "segmentation split", seed), max(2, limit // 4)
    if len(data) <= test_limit:
        test = tuple(np.sort(order[fold::FOLDS]) for fold in range(FOLDS))
        learn = tuple(np.setdiff1d(order, held) for held in test)
    else:
        held = max(2, len(data) // 5)
        learn, test = (np.sort(order[held:][:limit]),), (np.sort(order[:held][:test_limit]),)
    parts = MaskedParts(data=data, learn=learn, test=test)
    asked = parts.every.tolist()
    unreadable([BadRecord(one, *data.bad[one], -1) for one in asked if one in data.bad], len(asked), bad_images)
    return parts


def assess_segmentation(
    panel: Panel,
    images: Path,
    masks: Path,
    *,
    limit: int = 20_000,
    seed: int = 0,
    segmenters: Sequence[Segmenter] = (PatchKNN(), LinearSegmentation()),
    bad_images: float = BAD_IMAGES,
    pictures: Path | None = None,
    cache: FeatureCache | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """mIoU of each segmenter, as entries of ``evaluation.json`` with task "segmentation".

    The images are dealt into five folds, and each is tested on by what was learned on the others; where they are more
    than may be tested on a fifth of them is held out.

    Args:
        images: a folder of images.
        masks: a folder with a mask of class numbers for each, of the same name.
        limit: at most so many images to learn on, and a quarter of it to test on.
        seed: of the split and of the patches to learn on.
        segmenters: what judges the patches' features.
        bad_images: share of the images (0 to 1) that may be unreadable, themselves or their mask.
        pictures: a folder for ``segmentation.png``: test images, their masks, and what was made of them.
        cache: where features of patches (of at most 512 MiB a part) are looked for and kept; none are without it.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: the encoder's features are not of patches, the folders don't hold images with masks, or too few
            that can be read, or the picture exists.
    """
    begin = time.perf_counter()
    grid_of(panel)
    where = new_picture(pictures, "segmentation.png")
    parts = open_parts(images, masks, limit=limit, seed=seed, bad_images=bad_images)
    data = parts.data
    view = MaskedView(panel=panel, data=data, seed=seed, cache=cache)
    note(f"features of the patches of {len(parts.learned):,} images to learn on")
    train = patches_to_learn(view, parts.learned)
    learned = len(parts.learned) - len(view.bad)
    tested = _Tested()
    for number, (learn, test) in enumerate(zip(parts.learn, parts.test, strict=True), 1):
        which = f", fold {number} of {len(parts.test)}" if parts.folded else ""
        own = {name: _of(patches, learn) for name, patches in train.items()}
        fitted: dict[tuple[str, str], Fitted] = {}
        for segmenter in segmenters:
            note(f"{segmenter.name}{which}")
            fitted |= {(segmenter.name, name): segmenter.fit(own[name]) for name in view.encoders}
        note(f"the {len(test):,} images to test on{which}")
        _test(view, test, fitted, int(own[PIXELS].shares.sum(0).argmax()), tested)
    overlaps, constant = tested.joined()
    images_tested = len(constant.union)
    bad = {one.sample: one for one in view.bad}  # met again where an image is tested on as well
    notes = unreadable([*bad.values()], len(parts.every), bad_images)
    worth = WORTH if parts.folded else 1
    if worth * images_tested < _FEWEST_TO_TEST:
        notes.append(
            f"with {images_tested} test image{'s' * (images_tested > 1)} the intervals of the mIoU mean little: they "
            f"are to be had from {math.ceil(_FEWEST_TO_TEST / worth)} test images on."
        )
    if where is not None:
        _picture(tested.shown, segmenters[-1].name).save(where)
    widths = {name: patches.values.shape[1] for name, patches in train.items()}
    told = IN_FOLDS if parts.folded else FIFTH_OF_ALL
    return {
        "data": f"{printable(str(images))}{WITH_MASKS}{printable(str(masks))}",
        "classes": len(data.values),
        **counted(learned, images_tested, folded=parts.folded),
        "split": f"{data.sentence} {told} Masks are judged at the encoder's "
        f"input size, {_times(panel.preprocessing.size)} px, from a grid of {_times(view.grid)} patches.",
        "notes": notes,
        **_record(overlaps, tested.settings(), widths, constant.miou(), worth),
        "pictures": [str(where)] if where else [],
        "seconds": time.perf_counter() - begin,
    }


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A test image with its mask and the masks that each segmenter and encoder made of it."""

    image: UInt8[np.ndarray, "H W C"]
    mask: UInt8[np.ndarray, "H W"]
    made: dict[tuple[str, str], UInt8[np.ndarray, "H W"]]


@dataclass(frozen=True, kw_only=True)
class _Tested:
    """What was found, batch by batch: overlaps of every segmenter (first name) on every kind of features and of naming
    every pixel the commonest class, the first images to look at, and what the segmenters of each fold chose."""

    overlaps: dict[tuple[str, str], list[Overlap]] = field(default_factory=dict)
    constant: list[Overlap] = field(default_factory=list)
    shown: list[_Shown] = field(default_factory=list)
    chosen: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)

    def joined(self) -> tuple[dict[tuple[str, str], Overlap], Overlap]:
        """The overlaps of all images; InputError where none can be judged."""
        joined = {key: Overlap.joined(parts) for key, parts in self.overlaps.items() if parts}
        if not joined or not all(overlap.union.any() for overlap in joined.values()):
            raise InputError("no image to test on can be read and has a labelled pixel; give more images with masks")
        return joined, Overlap.joined(self.constant)

    def settings(self) -> dict[tuple[str, str], dict[str, float]]:
        """The medians over the folds."""
        return {key: medians(every) for key, every in self.chosen.items()}


def _of(patches: Patches, images: Int64[np.ndarray, "_L"]) -> Patches:
    """The patches of some of the images."""
    inside = torch.isin(patches.image, torch.from_numpy(images))
    if not inside.any():
        raise InputError("of the images to learn on in one fold no pixel is labelled; give more images with masks")
    return patches.take(inside)


@torch.inference_mode()
def _test(
    view: MaskedView,
    chosen: np.ndarray,
    fitted: Mapping[tuple[str, str], Fitted],
    commonest: int,
    tested: _Tested,
) -> None:
    """Add what the segmenters make of the images that were ``chosen``, and that of naming every pixel the
    ``commonest`` class."""
    classes = len(view.data.values)
    for key, segmenter in fitted.items():
        tested.overlaps.setdefault(key, [])
        tested.chosen.setdefault(key, []).append(segmenter.settings)
    preprocessing = view.panel.preprocessing
    for _, images, masks, features in view.encoded(chosen):
        tested.constant.append(Overlap.of(torch.full(masks.shape, commonest), masks, classes))
        made = {}
        for key, segmenter in fitted.items():
            predicted = to_pixels(segmenter.score(features[key[1]]), view.grid, preprocessing.size)
            tested.overlaps[key].append(Overlap.of(predicted, masks, classes))
            made[key] = predicted.to(torch.uint8).numpy()
        pixels = preprocessing.pictures(images)
        for number in range(min(len(images), _PICTURED - len(tested.shown))):
            own = {key: predicted[number] for key, predicted in made.items()}
            tested.shown.append(_Shown(image=pixels[number], mask=masks[number].numpy(), made=own))


def _record(
    overlaps: Mapping[tuple[str, str], Overlap],
    settings: Mapping[tuple[str, str], dict[str, float]],
    widths: Mapping[str, int],
    constant: float,
    worth: int | float,
) -> dict[str, Any]:
    """Rows, differences and a sentence for each segmenter, as the classification has them."""
    rows, differences, said = [], [], []
    for (segmenter, name), overlap in overlaps.items():
        low, high = overlap.interval(worth)
        about = {"task": TASK, "features": name, "evaluator": segmenter, "metric": "mIoU"}
        measured = {"value": overlap.miou(), "low": low, "high": high}
        rest = {"dimensions": widths[name], "settings": settings[segmenter, name]}
        iou = [None if np.isnan(value) else float(value) for value in overlap.iou()]
        rows.append(about | measured | rest | {"iou": iou})
        if name in BASELINES:
            continue
        parts = []
        for baseline in BASELINES:
            found = overlap.difference(overlaps[segmenter, baseline], worth)
            row = {"task": TASK, "features": name, "against": baseline, "evaluator": segmenter, "metric": "mIoU"}
            differences.append(row | asdict(found))
            clear = "" if found.verdict != "unclear" else ", not clear"
            interval = f"95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f}{clear}"
            parts.append(f"{100 * found.value:+.1f} points against {_CALLED[baseline]} ({interval})")
        said.append(f"On {segmenter} the {name} has an mIoU of {100 * overlap.miou():.1f}: {' and '.join(parts)}.")
    said.append(f"Naming every pixel the commonest class gives an mIoU of {100 * constant:.1f}.")
    if any(name == PIXELS for _, name in overlaps):
        said.append("Raw pixels are those of a patch without its place in the image, which an encoder knows.")
    return {"rows": rows, "differences": differences, "chance": {TASK: constant}, "summary": "\n".join(said)}


def _picture(shown: Sequence[_Shown], segmenter: str) -> Image.Image:
    """A row for each image: itself, its mask, and the masks made from each kind of features."""
    names = list(dict.fromkeys(name for _, name in shown[0].made))
    rows = [
        [in_colour(one.image), painted(one.image, one.mask)]
        + [painted(one.image, np.where(one.mask == IGNORE, IGNORE, one.made[segmenter, name])) for name in names]
        for one in shown
    ]
    return sheet(rows, headings=("image", "its mask", *names))


def _times(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))

"""Judge an encoder's patches on somebody's masks, beside a random encoder of its shape and the patches' raw pixels."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from openjepa.assessment.patch_features import MaskedView, grid_of, patches_to_learn
from openjepa.assessment.sheets import in_colour, new_picture, painted, sheet
from openjepa.data.loader import BadRecord
from openjepa.data.masks import MaskedImages, open_masked
from openjepa.errors import InputError
from openjepa.evaluation.dense import Fitted, LinearSegmentation, PatchKNN, Segmenter, to_pixels
from openjepa.evaluation.overlap import IGNORE, Overlap
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


def open_parts(
    images: Path, masks: Path, *, limit: int = 20_000, seed: int = 0, bad_images: float = BAD_IMAGES
) -> tuple[MaskedImages, Int64[np.ndarray, "L"], Int64[np.ndarray, "T"]]:
    """Images with masks, and which of them :func:`assess_segmentation` learns on (L) and tests on (T).

    Raises:
        InputError: the folders don't hold images with masks, or too few that can be read.
    """
    with progress("masks") as advance:
        data = open_masked(images, masks, advance)
    if len(data) < _FEWEST_IMAGES:
        raise InputError(f"{len(data)} images with masks are too few to judge by: at least {_FEWEST_IMAGES} are needed")
    held = max(2, len(data) // 5)
    order = draws.permutation(len(data), "segmentation split", seed)
    learn, test = np.sort(order[held:][:limit]), np.sort(order[:held][: max(2, limit // 4)])
    known = [BadRecord(one, *data.bad[one], -1) for one in (*learn.tolist(), *test.tolist()) if one in data.bad]
    unreadable(known, len(learn) + len(test), bad_images)
    return data, learn, test


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
    """mIoU of each segmenter on a fifth of the images, as entries of ``evaluation.json`` with task "segmentation".

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
    data, learn, test = open_parts(images, masks, limit=limit, seed=seed, bad_images=bad_images)
    view = MaskedView(panel=panel, data=data, seed=seed, cache=cache)
    own = next(iter(view.encoders))
    note(f"features of the patches of {len(learn):,} images to learn on")
    train = patches_to_learn(view, learn)
    learned = len(learn) - len(view.bad)
    fitted: dict[tuple[str, str], Fitted] = {}
    for segmenter in segmenters:
        note(segmenter.name)
        fitted |= {(segmenter.name, name): segmenter.fit(train[name]) for name in view.encoders}
    note(f"the {len(test):,} images to test on")
    commonest = int(train[PIXELS].shares.sum(0).argmax())
    overlaps, shown, constant = _test(view, test, fitted, commonest)
    tested = len(overlaps[segmenters[0].name, own].union)
    notes = unreadable(view.bad, len(learn) + len(test), bad_images)
    if tested < _FEWEST_TO_TEST:
        notes.append(
            f"with {tested} test image{'s' * (tested > 1)} the intervals of the mIoU mean little: they are to be had "
            f"from {_FEWEST_TO_TEST} test images on, the fifth of {5 * _FEWEST_TO_TEST} images with masks."
        )
    if where is not None:
        _picture(shown, segmenters[-1].name).save(where)
    widths = {name: patches.values.shape[1] for name, patches in train.items()}
    return {
        "data": f"{images}{WITH_MASKS}{masks}",
        "classes": len(data.values),
        "train_images": learned,
        "test_images": tested,
        "split": f"{data.sentence} A fifth of the images was held out to test on. Masks are judged at the encoder's "
        f"input size, {_times(panel.preprocessing.size)} px, from a grid of {_times(view.grid)} patches.",
        "notes": notes,
        **_record(overlaps, fitted, widths, constant.miou()),
        "pictures": [str(where)] if where else [],
        "seconds": time.perf_counter() - begin,
    }


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A test image with its mask and the masks that each segmenter and encoder made of it."""

    image: UInt8[np.ndarray, "H W C"]
    mask: UInt8[np.ndarray, "H W"]
    made: dict[tuple[str, str], UInt8[np.ndarray, "H W"]]


@torch.inference_mode()
def _test(
    view: MaskedView, chosen: np.ndarray, fitted: Mapping[tuple[str, str], Fitted], commonest: int
) -> tuple[dict[tuple[str, str], Overlap], list[_Shown], Overlap]:
    """The overlaps of every segmenter (first name) on every kind of features, the first images to look at, and the
    overlap of naming every pixel the ``commonest`` class."""
    classes, constant = len(view.data.values), list[Overlap]()
    overlaps: dict[tuple[str, str], list[Overlap]] = {key: [] for key in fitted}
    shown: list[_Shown] = []
    preprocessing = view.panel.preprocessing
    for _, images, masks, features in view.encoded(chosen):
        constant.append(Overlap.of(torch.full(masks.shape, commonest), masks, classes))
        made = {}
        for key, segmenter in fitted.items():
            predicted = to_pixels(segmenter.score(features[key[1]]), view.grid, preprocessing.size)
            overlaps[key].append(Overlap.of(predicted, masks, classes))
            made[key] = predicted.to(torch.uint8).numpy()
        pixels = preprocessing.pictures(images)
        for number in range(min(len(images), _PICTURED - len(shown))):
            own = {key: predicted[number] for key, predicted in made.items()}
            shown.append(_Shown(image=pixels[number], mask=masks[number].numpy(), made=own))
    joined = {key: Overlap.joined(parts) for key, parts in overlaps.items() if parts}
    if not joined or not all(overlap.union.any() for overlap in joined.values()):
        raise InputError("no image to test on can be read and has a labelled pixel; give more images with masks")
    return joined, shown, Overlap.joined(constant)


def _record(
    overlaps: Mapping[tuple[str, str], Overlap],
    fitted: Mapping[tuple[str, str], Fitted],
    widths: Mapping[str, int],
    constant: float,
) -> dict[str, Any]:
    """Rows, differences and a sentence for each segmenter, as the classification has them."""
    rows, differences, said = [], [], []
    for (segmenter, name), overlap in overlaps.items():
        low, high = overlap.interval()
        about = {"task": TASK, "features": name, "evaluator": segmenter, "metric": "mIoU"}
        measured = {"value": overlap.miou(), "low": low, "high": high}
        rest = {"dimensions": widths[name], "settings": fitted[segmenter, name].settings}
        iou = [None if np.isnan(value) else float(value) for value in overlap.iou()]
        rows.append(about | measured | rest | {"iou": iou})
        if name in BASELINES:
            continue
        parts = []
        for baseline in BASELINES:
            found = overlap.difference(overlaps[segmenter, baseline])
            row = {"task": TASK, "features": name, "against": baseline, "evaluator": segmenter, "metric": "mIoU"}
            differences.append(row | asdict(found))
            clear = "" if found.verdict != "unclear" else ", not clear"
            interval = f"95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f}{clear}"
            parts.append(f"{100 * found.value:+.1f} points against {_CALLED[baseline]} ({interval})")
        said.append(f"On {segmenter} the {name} has an mIoU of {100 * overlap.miou():.1f}: {' and '.join(parts)}.")
    said.append(f"Naming every pixel the commonest class gives an mIoU of {100 * constant:.1f}.")
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

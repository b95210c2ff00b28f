"""Train and test parts of labelled images: a fair split where the data bring none, and what a fair test needs."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int, Int64

from openjepa import draws
from openjepa.errors import InputError
from openjepa.evaluation.features import Part

TRAIN_IMAGES_PER_CLASS = 2


def split(
    labels: Int[np.ndarray, "n"], holdout: float = 0.2, seed: int = 0
) -> tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]]:
    """Indices, ascending, of a train and a test part with ``holdout`` of every class in the test part.

    A class with two images or more has at least one in each part; an image alone in its class goes to train; images
    without a class (-1) to neither. A function of the labels and the seed only.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must lie between 0 and 1, got {holdout}")
    train, test = [], []
    for label in np.unique(labels[labels >= 0]):
        members = np.flatnonzero(labels == label)
        members = members[draws.permutation(len(members), "evaluation split", seed, int(label))]
        held = min(len(members) - 1, max(1, round(holdout * len(members))))
        test.append(members[:held])
        train.append(members[held:])
    none = np.empty(0, np.int64)
    return np.sort(np.concatenate([none, *train])), np.sort(np.concatenate([none, *test]))


def at_most(
    indices: Int64[np.ndarray, "n"], limit: int, labels: Int[np.ndarray, "images"] | None = None
) -> Int64[np.ndarray, "at_most_n"]:
    """``limit`` of the images ``indices``, ascending, by a fixed seed.

    With ``labels``, two of every class at least, even where that is more.
    """
    if len(indices) <= limit:
        return indices
    order = indices[draws.permutation(len(indices), "limit")]
    if labels is None:
        return np.sort(order[:limit])
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    floors = [by_class[start : start + min(n, TRAIN_IMAGES_PER_CLASS)] for start, n in zip(starts, counts, strict=True)]
    every = np.concatenate([*floors, order])
    _, place = np.unique(every, return_index=True)
    return np.sort(every[np.sort(place)][: max(limit, sum(map(len, floors)))])


def set_aside(
    train: Int[np.ndarray, "train"], test: Int[np.ndarray, "test"], name: Callable[[int], str]
) -> tuple[Bool[np.ndarray, "train"], Bool[np.ndarray, "test"], str]:
    """Which images of both parts, by their labels, can be judged, and a sentence on the others (empty without any).

    A class with fewer than two train images is left out of both parts: nothing can be learned of it. Images without a
    class (-1) stay. ``name`` gives a class' name.

    Raises:
        InputError: fewer than two classes or test images are left.
    """
    classes, counts = np.unique(train[train >= 0], return_counts=True)
    enough = classes[counts >= TRAIN_IMAGES_PER_CLASS]
    met = np.union1d(classes, test[test >= 0])
    if len(enough) < 2:
        raise InputError(
            f"evaluation needs at least 2 classes of {TRAIN_IMAGES_PER_CLASS} train images or more, and of "
            f"{len(met)} classes {len(enough)} {'has' if len(enough) == 1 else 'have'} so many; add images"
        )
    kept = (train < 0) | np.isin(train, enough), (test < 0) | np.isin(test, enough)
    if kept[1].sum() < 2:
        raise InputError(
            f"{int(kept[1].sum())} of {len(test)} test image(s) are of classes that can be judged: at least 2 are "
            f"needed; add images"
        )
    scarce = np.setdiff1d(met, enough)
    if not len(scarce):
        return *kept, ""
    names = ", ".join(name(int(number)) for number in scarce[:3]) + (", ..." if len(scarce) > 3 else "")
    return *kept, (
        f"Not judged: {len(scarce):,} of {len(met):,} classes, with fewer than {TRAIN_IMAGES_PER_CLASS} train "
        f"images ({names}; {int((~kept[0]).sum()):,} train and {int((~kept[1]).sum()):,} test images in all)."
    )


def check_parts(train: Part, test: Part) -> None:
    """Refuse, with the numbers, parts on which an accuracy means nothing (InputError)."""
    if train.dimensions != test.dimensions:
        raise InputError(
            f"{train.name!r} has {train.dimensions} dimensions in the train part and {test.dimensions} in the test "
            "part; take both from the same encoder"
        )
    for part, features in (("train", train), ("test", test)):
        bare = int((features.labels < 0).sum())
        if bare:
            raise InputError(
                f"{bare} of {len(features)} {part} images have no class; give images in class folders or with labels"
            )
    classes, counts = np.unique(train.labels, return_counts=True)
    if len(classes) < 2:
        raise InputError(
            f"evaluation needs at least 2 classes in the train part, found {len(classes)} in {len(train)} images; "
            "put the images of each class in a folder of its own"
        )
    scarce = counts < TRAIN_IMAGES_PER_CLASS
    if scarce.any():
        raise InputError(
            f"{int(scarce.sum())} of {len(classes)} classes have fewer than {TRAIN_IMAGES_PER_CLASS} train images "
            f"(class {int(classes[scarce][0])} has {int(counts[scarce][0])}); add images or leave those classes out"
        )
    unseen = ~np.isin(test.labels, classes)
    if unseen.any():
        raise InputError(
            f"{int(unseen.sum())} of {len(test)} test images belong to classes without a train image "
            f"(the first is class {int(test.labels[unseen][0])}); leave them out or move some to the train part"
        )

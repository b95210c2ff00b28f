"""Train and test parts of labelled images: a fair split where the data bring none, and what a fair test needs."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Int, Int64

from openjepa import draws
from openjepa.errors import InputError
from openjepa.evaluation.features import Part

TRAIN_IMAGES_PER_CLASS = 2
# Each image is tested on in one of so many folds, by what was learned on the others.
FOLDS = 5


def by_class(labels: Int[np.ndarray, "n"]) -> Iterator[tuple[int, Int64[np.ndarray, "_"]]]:
    """Each class that occurs, ascending, with the indices of its images, ascending; images without one are in none."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for label, members in zip(classes.tolist(), np.split(order, starts[1:]), strict=False):  # of none, one empty part
        if label >= 0:
            yield label, members


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
    for label, members in by_class(labels):
        members = members[draws.permutation(len(members), "evaluation split", seed, label)]
        held = min(len(members) - 1, max(1, round(holdout * len(members))))
        test.append(members[:held])
        train.append(members[held:])
    none = np.empty(0, np.int64)
    return np.sort(np.concatenate([none, *train])), np.sort(np.concatenate([none, *test]))


def folds(labels: Int[np.ndarray, "n"], seed: int = 0) -> Int64[np.ndarray, "n"]:
    """The fold, 0 to :data:`FOLDS` - 1, in which each image is tested on; -1 for images without a class (-1).

    Folds have the same number of images, and of every class, but for one. A class with three images or more has two
    outside every fold. A function of the labels and the seed only.
    """
    found = np.full(len(labels), -1, np.int64)
    dealt = 0
    for label, members in by_class(labels):
        order = draws.permutation(len(members), "evaluation folds", seed, label)
        # Where one class ends the next goes on: small classes do not all fall into the first folds.
        found[members[order]] = (dealt + np.arange(len(members))) % FOLDS
        dealt += len(members)
    return found


def in_folds_at_most(labels: Int[np.ndarray, "n"], most: int) -> bool:
    """Whether images are to be tested on in folds: ``most`` labelled ones at the most, and two a fold at the least of
    those whose class has two outside every fold."""
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    return int(counts[counts > TRAIN_IMAGES_PER_CLASS].sum()) >= 2 * FOLDS and int(counts.sum()) <= most


def learned_at_once(images: int) -> int:
    """How many of so many images in folds an evaluator learns on at a time: those of all folds but one."""
    return images - images // FOLDS


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
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
    name: Callable[[int], str],
    *,
    folded: bool = False,
) -> tuple[Bool[np.ndarray, "train"], Bool[np.ndarray, "test"], str]:
    """Which images of both parts, by their labels, can be judged, and a sentence on the others (empty without any).

    A class with fewer than two train images is left out of both parts: nothing can be learned of it. Images without a
    class (-1) stay. ``name`` gives a class' name; ``folded`` says that both parts are the same images, in folds, of
    which one more is tested on.

    Raises:
        InputError: fewer than two classes or test images are left.
    """
    least, which = TRAIN_IMAGES_PER_CLASS + folded, "images" if folded else "train images"
    classes, counts = np.unique(train[train >= 0], return_counts=True)
    enough = classes[counts >= least]
    met = np.union1d(classes, test[test >= 0])
    if len(enough) < 2:
        raise InputError(
            f"evaluation needs at least 2 classes of {least} {which} or more, and of "
            f"{len(met)} classes {len(enough)} {'has' if len(enough) == 1 else 'have'} so many; add images"
        )
    kept = (train < 0) | np.isin(train, enough), (test < 0) | np.isin(test, enough)
    fewest = FOLDS if folded else 2
    if kept[1].sum() < fewest:
        raise InputError(
            f"{int(kept[1].sum())} of {len(test)} test image(s) are of classes that can be judged: at least {fewest} "
            f"are needed; add images"
        )
    scarce = np.setdiff1d(met, enough)
    if not len(scarce):
        return *kept, ""
    names = ", ".join(name(int(number)) for number in scarce[:3]) + (", ..." if len(scarce) > 3 else "")
    learn, held = (f"{int((~part).sum()):,}" for part in kept)
    left = learn if folded else f"{learn} train and {held} test"
    return *kept, (
        f"Not judged: {len(scarce):,} of {len(met):,} classes, with fewer than {least} {which} ({names}; {left} images "
        f"in all)."
    )


def check_pair(train: Part, test: Part) -> None:
    """Refuse parts of different widths, and images without a class to learn on (InputError).

    Images without one may be asked about; a measure counts the answer as wrong.
    """
    if train.dimensions != test.dimensions:
        raise InputError(
            f"{train.name!r} has {train.dimensions} dimensions in the train part and {test.dimensions} in the test "
            "part; take both from the same encoder"
        )
    _check_labelled("train", train)


def _check_labelled(part: str, features: Part) -> None:
    bare = int((features.labels < 0).sum())
    if bare:
        raise InputError(
            f"{bare} of {len(features)} {part} images have no class; give images in class folders or with labels"
        )


def check_parts(train: Part, test: Part) -> None:
    """Refuse, with the numbers, parts on which an accuracy means nothing (InputError)."""
    check_pair(train, test)
    _check_labelled("test", test)
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

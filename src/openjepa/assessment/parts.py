"""Which images an encoder is judged on: what is learned on and what is tested on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from openjepa.assessment.extraction import Chosen, unreadable
from openjepa.data.base import Splits
from openjepa.data.loader import BadRecord
from openjepa.errors import InputError
from openjepa.evaluation.features import Features, Part
from openjepa.evaluation.finetune import Labelled
from openjepa.evaluation.split import FOLDS, at_most, in_folds_at_most, learned_at_once, set_aside, split

HELD_OUT = "A fifth of each class was held out to test on."
FIFTH_OF_ALL = "A fifth of the images was held out to test on."
IN_FOLDS = f"Each image was tested on in one of {FOLDS} folds, by what was learned on the others."
AnyPart = TypeVar("AnyPart", Features, Part, Labelled)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The images to learn on and to test on, and how they were told apart; ``folded``: both are all, in folds."""

    learn: Chosen
    held: Chosen
    sentence: str
    folded: bool = False

    @property
    def each(self) -> tuple[Chosen, ...]:
        """The sets of images that there are: the first to learn on, the last to test on."""
        return (self.learn,) if self.folded else (self.learn, self.held)


def chosen_parts(
    splits: Splits, limit: int, test_limit: int | None = None, *, folded: bool = False, trained_on: str = ""
) -> Parts:
    """The images to learn on and to test on.

    Args:
        limit: at most so many to learn on, or two of every class.
        test_limit: at most so many to test on (a quarter of ``limit``).
        folded: without a test part each image is tested on, in folds, where that is within the limit.
        trained_on: as :func:`assess` has it.

    Raises:
        InputError: fewer than two classes have two images to learn on (in folds: three images).
    """
    train, test, sentence = splits.train, splits.test, splits.sentence
    assert train.labels is not None
    test_limit = max(2, limit // 4) if test_limit is None else test_limit
    labelled = np.flatnonzero(train.labels >= 0)
    if test is not None and test.labels is not None:
        folded, learn, held = False, labelled, np.flatnonzero(test.labels >= 0)
    else:
        folded = folded and in_folds_at_most(train.labels, test_limit)
        told = "" if test is None else f"{splits.said} "
        sentence = told + (IN_FOLDS if folded else HELD_OUT)
        if trained_on and trained_on == train.fingerprint:
            sentence += " The encoder saw these images in training, without labels."
        test, (learn, held) = train, (labelled, labelled) if folded else split(train.labels)
    assert test.labels is not None
    enough, seen, left_out = set_aside(
        train.labels[learn], test.labels[held], lambda label: train.classes[label], folded=folded
    )
    learn, held, name = learn[enough], held[seen], "labelled" if folded else "train"
    return Parts(
        learn=Chosen(source=train, indices=at_most(learn, limit, train.labels), name=name),
        held=Chosen(source=test, indices=at_most(held, test_limit), name="test"),
        sentence=" ".join(filter(None, (sentence, left_out))),
        folded=folded,
    )


def left_to_judge(
    parts: Parts,
    labels: tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]],
    bad: Sequence[BadRecord],
    bad_images: float,
) -> tuple[Int64[np.ndarray, "K"], list[str]]:
    """The classes that can be judged on the images that could be read, and notes on what could not.

    Args:
        parts: the images asked for.
        labels: of those to learn on and of those to test on that could be read.
        bad: the others.
        bad_images: the share of them that is allowed.

    Raises:
        InputError: they are more, or fewer than two classes or test images are left.
    """
    learn, held = parts.learn, parts.held
    notes = unreadable(bad, sum(len(part.indices) for part in parts.each), bad_images)
    assert held.source.labels is not None
    names = learn.source.classes
    try:
        enough, seen, _ = set_aside(*labels, lambda label: names[label], folded=parts.folded)
    except InputError as error:
        # All that were asked for could be judged: it is for want of those that were left out.
        said = " ".join(notes).rstrip(".")
        raise InputError(f"{error}, or mend those that cannot be read: {said}") from error
    asked, left = np.unique(held.source.labels[held.indices]), np.unique(labels[1][seen])
    if len(lost := np.setdiff1d(asked, left)):
        named = ", ".join(names[label] for label in lost[:3]) + (", ..." if len(lost) > 3 else "")
        notes.append(f"Not judged: {len(lost):,} of {len(asked):,} classes, of too few readable images ({named}).")
    return np.unique(labels[0][enough]), notes


def counted(learned: int, tested: int, *, folded: bool) -> dict[str, int]:
    """What a record says of how many images were in the part to learn on and in that to test on; in folds all but one
    fold of them are learned on at a time."""
    if not folded:
        return {"train_images": learned, "test_images": tested}
    return {"train_images": learned_at_once(learned), "test_images": tested, "folds": FOLDS}


def of_classes(part: AnyPart, classes: Int64[np.ndarray, "K"]) -> AnyPart:
    """The part without the images of other classes; itself where there are none."""
    within = np.isin(part.labels, classes)
    return part if within.all() else part.take(np.flatnonzero(within))


def digest_of(*parts: Chosen) -> str:
    """Which images, with which labels: by their sets' identity, not by where they lie or how that is spelled."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.source.fingerprint.encode())
        digest.update(np.stack([part.indices, part.labels(part.indices)]).tobytes())
    return digest.hexdigest()[:32]

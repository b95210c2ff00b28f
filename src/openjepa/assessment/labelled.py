"""Judge an encoder on somebody's labelled images, always beside a random encoder of its shape and raw pixels."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Kind, Panel, offsets, panel_of
from openjepa.assessment.extraction import BAD_IMAGES, Chosen, extract_kinds, unreadable
from openjepa.assessment.outcomes import remembering
from openjepa.assessment.parts import chosen_parts, counted, digest_of, left_to_judge, of_classes
from openjepa.assessment.precomputed import GIVEN, Given, pixels_of
from openjepa.data.base import Source, Splits
from openjepa.errors import InputError
from openjepa.evaluation.balanced import with_balance
from openjepa.evaluation.catalogue import quick
from openjepa.evaluation.features import Features, Part
from openjepa.evaluation.folds import in_folds
from openjepa.evaluation.spectrum import rankme
from openjepa.evaluation.split import at_most, check_parts, folds, set_aside
from openjepa.evaluation.suite import LAST, PIXELS, TASK, TOKENS, Entry, Judge, Progress, judge, run_suite
from openjepa.pretrained import Pretrained

# With this a note on the test images' classes begins.
UNEVEN = "The classes are uneven"
# Standard deviations of the images trained on, between their mean and that of others, from which on it is told.
_FAR = 5


def silent(doing: str, done: float, total: float) -> None:
    """Nobody waits."""


def assess(
    judged: Pretrained | Panel,
    splits: Splits,
    *,
    entries: Sequence[Entry] | None = None,
    limit: int = 20_000,
    bad_images: float = BAD_IMAGES,
    trained_on: str = "",
    command: str = "",
    cache: FeatureCache | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The content of ``evaluation.json``: every measure with its interval, RankMe, and a sentence that sums up.

    Args:
        judged: an encoder of ours, or any encoder with its baselines (:func:`openjepa.assessment.encoders.open_panel`).
        splits: the test part is the data's own; without one the images are dealt into five folds, in which each is
            tested on once, or a fifth of each class is held out where they are more than may be tested on.
        entries: the evaluators (the quick ones).
        limit: at most so many images to learn on (two of every class all the same), and a quarter of it to test on;
            chosen by a fixed seed.
        bad_images: share of the images (0 to 1) that may be unreadable.
        trained_on: fingerprint of the images that the encoder was trained on, where it is known.
        command: what a person types to get the same again, for the record.
        cache: where features, and what evaluators found in them, are looked for and kept; none are without it.
        progress: told what is being done, how much of it is done, and how much there is.

    Raises:
        InputError: too few images, too many unreadable ones, or fewer than two classes with two images to learn on
            (in folds: three images).
    """
    if limit < 8:
        raise InputError(f"--limit must be at least 8 images, got {limit}")
    begin = time.perf_counter()
    panel = panel_of(judged) if isinstance(judged, Pretrained) else judged
    entries = quick() if entries is None else entries
    train = splits.train
    facts: dict[str, Any] = {"data": train.name, "command": command, "encoder": panel.fingerprint}
    if train.labels is None or len(train.classes) < 2:
        found = _unlabelled(panel, train, limit, bad_images, cache, progress)
        return facts | found | {"seconds": time.perf_counter() - begin}
    parts = chosen_parts(splits, limit, folded=True, trained_on=trained_on)
    kinds, main = kinds_for(panel, entries), Kind(panel.subjects[0], LAST)
    taken = [extract_kinds(panel, part, kinds, cache, progress) for part in parts.each]
    labels = taken[0].parts[main].labels, taken[-1].parts[main].labels
    classes, lost = left_to_judge(parts, labels, [one for part in taken for one in part.bad], bad_images)
    of_all = [{kind: of_classes(features, classes) for kind, features in part.parts.items()} for part in taken]
    trained, tested = of_all[0], of_all[-1]
    subjects, notes = by_subject(trained, tested, folded=parts.folded)
    chance, uneven, told = _classes_of(trained[main].labels, tested[main].labels)
    pixels = trained.get(Kind(PIXELS, LAST)), tested.get(Kind(PIXELS, LAST))
    notes += told + _copies(*pixels, panel.pixels, folded=parts.folded) + _unlike(panel, trained)
    found = run_suite(subjects, entries, progress, _judge(remembering(cache), folded=parts.folded, uneven=uneven))
    return facts | {
        **chance,
        "images": digest_of(*parts.each),
        **counted(len(trained[main]), len(tested[main]), folded=parts.folded),
        "split": parts.sentence,
        "pixels": list(panel.pixels),
        **found.record(),
        "notes": [*panel.notes, *lost, *notes],
        "seconds": time.perf_counter() - begin,
    }


def assess_given(
    given: Given, splits: Splits | None, *, entries: Sequence[Entry], command: str = "", progress: Progress = silent
) -> dict[str, Any]:
    """As :func:`assess`, of precomputed features; raw pixels stand beside them where ``splits`` has their images.

    Raises:
        InputError: too few images or classes, or ``splits`` has other images.
    """
    begin = time.perf_counter()
    enough, seen, left_out = set_aside(given.train.labels, given.test.labels, "class {}".format, folded=given.folded)
    rows = np.flatnonzero(enough), np.flatnonzero(seen)
    train, test = given.train.take(rows[0]), given.test.take(rows[1])
    check_parts(train, test)
    subjects: dict[str, dict[str, tuple[Part, Part]]] = {GIVEN: {LAST: (train, test)}}
    notes = ["A random encoder is not available: nobody knows what network these features came from."]
    size: tuple[int, int] | None = None
    if splits is None:
        notes.append("Raw pixels are not available: name the images as DATA to have them beside the features.")
    else:
        (learn, held), size = pixels_of(given, splits)
        subjects[PIXELS] = {LAST: (learn.take(rows[0]), held.take(rows[1]))}
    chance, uneven, told = _classes_of(train.labels, test.labels)
    notes += told
    able = [entry for entry in entries if entry.view == LAST]
    if left := [entry.evaluator.name for entry in entries if entry.view != LAST]:
        notes.append(f"Not available for one vector an image: {', '.join(left)}.")
    if not able:
        raise InputError("none of the evaluators asked for can be run on precomputed features: they need the network")
    found = run_suite(subjects, able, progress, _judge(judge, folded=given.folded, uneven=uneven))
    return {
        "data": GIVEN if splits is None else splits.train.name,
        **chance,
        "command": command,
        **counted(len(train), len(test), folded=given.folded),
        "split": " ".join(filter(None, (given.sentence, left_out))),
        "pixels": None if size is None else list(size),
        **found.record(),
        "notes": notes,
        "seconds": time.perf_counter() - begin,
    }


def _classes_of(
    learned: Int64[np.ndarray, "train"], tested: Int64[np.ndarray, "test"]
) -> tuple[dict[str, Any], bool, list[str]]:
    """Among how many classes an evaluator chooses, whether those asked about are uneven, and notes on both.

    Where naming always one class would be right far more often than guessing among those learned, its share of the
    test images is the ``chance``. Uneven they are where it has far more than its share of those that occur.
    """
    counts, choices = np.unique(tested, return_counts=True)[1], len(np.unique(learned))
    commonest, notes = float(counts.max() / counts.sum()), list[str]()
    found: dict[str, Any] = {"classes": choices}
    bar, uneven = (commonest > min(2 / number, 1 / number + 0.1) for number in (choices, len(counts)))
    if len(counts) < choices:
        notes.append(f"Of the {choices:,} classes learned {len(counts):,} occur among the test images.")
    if bar:
        found["chance"] = {TASK: commonest}
        said = f"o name always the commonest would be right for {100 * commonest:.1f}% of the test images."
        beside = "The balanced accuracy, the mean over classes, stands beside the accuracy."
        notes.append(f"{UNEVEN}: t{said} {beside}" if uneven else f"T{said}")
    return found, uneven, notes


def _judge(judged: Judge, *, folded: bool, uneven: bool) -> Judge:
    """A judge in folds, where there is no test part, and with balanced accuracies, where classes are uneven."""
    judged = in_folds(judged) if folded else judged
    return with_balance(judged) if uneven else judged


def _copies(train: Part | None, test: Part | None, size: tuple[int, int], *, folded: bool) -> list[str]:
    """A note where test images, as raw pixels of this size, are among those learned on (in folds: in another fold):
    copied files are, and pictures of nothing."""
    if train is None or test is None:
        return []
    learned, tested = ([sha256(row.tobytes()).digest() for row in part.values] for part in (train, test))
    homes = folds(train.labels).tolist() if folded else [0] * len(learned)
    times = Counter(one for one, _ in set(zip(learned, homes, strict=True)))
    if not (found := sum(times[one] > folded for one in tested)):
        return []
    return [
        f"{found:,} of {len(tested):,} test images look just like others that were learned on (at {size[0]}x{size[1]} "
        "px): if they are copies, accuracies are too high, so remove them."
    ]


def _unlike(panel: Panel, parts: Mapping[Kind, Part]) -> list[str]:
    """A note where the images are far brighter or darker than those that the encoder was trained on, as the same ones
    are where they were scaled otherwise."""
    pixels = parts.get(Kind(PIXELS, LAST))
    if not isinstance(pixels, Features):
        return []
    preprocessing = panel.preprocessing
    means = pixels.values.reshape(len(pixels), preprocessing.channels, -1).mean((0, 2), dtype=np.float64)
    means += offsets(preprocessing)
    away = np.abs(means - preprocessing.mean) / preprocessing.std
    worst = int(away.argmax())
    if away[worst] <= _FAR:
        return []
    return [
        f"These images are not like those trained on: their mean (of channel {worst + 1}, on a scale from 0 to 1) is "
        f"{means[worst]:.3g}, {away[worst]:.0f} standard deviations from the {preprocessing.mean[worst]:.3g} there. "
        f"Were they scaled otherwise? Floats are scaled by the largest of their own folder."
    ]


def kinds_for(panel: Panel, entries: Sequence[Entry]) -> list[Kind]:
    """What the entries read, and always the last layer, which RankMe is of."""
    views = {LAST, *(entry.view for entry in entries)}
    return [kind for kind in panel.kinds if kind.view in views]


def by_subject(
    trained: dict[Kind, Part], tested: dict[Kind, Part], *, folded: bool = False
) -> tuple[dict[str, dict[str, tuple[Part, Part]]], list[str]]:
    """The parts by subject and view; tokens of too few images to be judged (in folds: ``folded``) are left out, which
    is said."""
    subjects: dict[str, dict[str, tuple[Part, Part]]] = {}
    notes = []
    for kind, train in trained.items():
        test = tested[kind]
        if kind.view == TOKENS and len(train) < len(trained[Kind(kind.subject, LAST)]):
            which = "images" if folded else "train images"
            notes.append(f"Tokens of {kind.subject} are of {len(train):,} {which}, to bound the memory.")
            try:
                check_parts(train, test)
                if folded:
                    set_aside(train.labels, test.labels, "class {}".format, folded=True)
            except InputError as error:
                notes.append(f"They are not judged: {error}.")
                continue
        subjects.setdefault(kind.subject, {})[kind.view] = train, test
    return subjects, notes


def _unlabelled(
    panel: Panel, source: Source, limit: int, bad_images: float, cache: FeatureCache | None, progress: Progress
) -> dict[str, Any]:
    """Without labels: RankMe, which says how many directions the features use, not what they are good for."""
    part = Chosen(source=source, indices=at_most(np.arange(len(source)), limit), name="train")
    found = extract_kinds(panel, part, [kind for kind in panel.kinds if kind.view == LAST], cache, progress)
    notes = unreadable(found.bad, len(part.indices), bad_images) + _unlike(panel, found.parts)
    measures = {
        kind.subject: {"rankme": rankme(torch.from_numpy(features.values)), "images": len(features)}
        for kind, features in found.parts.items()
        if isinstance(features, Features)
    }
    return {
        "classes": 0,
        "train_images": len(part.indices) - len(found.bad),
        "test_images": 0,
        "split": f"{source.name} has no labels ({source.unlabelled}), so nothing can be classified.",
        "pixels": list(panel.pixels),
        "rows": [],
        "spectrum": measures,
        "summary": "Without labels no accuracy of classes can be measured.",
        "notes": notes,
    }

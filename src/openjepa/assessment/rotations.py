"""Judge an encoder without labels: which way up an image is, asked of images that were turned.

A stand-in for the accuracies that need labels: classifiers of it rank encoders much as classifiers of the classes do
(rank correlation above 0.94: Reed et al., "SelfAugment", CVPR 2021, sec. 4; here 0.94 for k-NN, benchmarks/collapse).
By k-NN, for a linear probe also reads what pictures keep of how they were made (resampling, compression), which an
untrained encoder passes on and a trained one drops: on CIFAR-10 it put one far below that was level by its classes
(LOG.md). It says nothing where images have no up and down, as through a microscope; nobody is right then.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from openjepa import draws
from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Kind, Panel
from openjepa.assessment.extraction import BAD_IMAGES, Altered, Chosen, Images, extract_kinds, unreadable
from openjepa.assessment.labelled import by_subject, kinds_for
from openjepa.assessment.outcomes import remembering
from openjepa.assessment.parts import FIFTH_OF_ALL, IN_FOLDS, Parts, counted, digest_of
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Splits
from openjepa.data.loader import Batch
from openjepa.errors import InputError
from openjepa.evaluation.catalogue import quick
from openjepa.evaluation.features import Evaluator, Part
from openjepa.evaluation.folds import Dealt, in_folds
from openjepa.evaluation.intervals import wilson_of_groups
from openjepa.evaluation.split import FOLDS, at_most
from openjepa.evaluation.suite import LAST, Entry, Found, Judge, run_suite

TASK = "rotation"
# Of images to learn on, and of four times those to test on: each way of turning has some of both.
_FEWEST = 32


@dataclass(frozen=True, kw_only=True)
class Turned(Altered):
    """Images, turned by quarters or (``quarters`` 2: an oblong input) by halves; how often is the label.

    A turned image's number is ``ways`` times its image's, and its label.
    """

    quarters: int
    times: int

    @classmethod
    def for_size(cls, clean: Images, size: tuple[int, int], times: int = 1) -> "Turned":
        """All of the images, turned as the encoder's input of ``size`` (height, width) allows, each once or (``times``)
        in so many different ways, if there are that many."""
        quarters = 1 if size[0] == size[1] else 2
        ways = 4 // quarters
        times = min(times, ways)
        first = (draws.uniform("turned", clean.indices) * ways).astype(np.int64)
        turns = np.sort((first[:, None] + np.arange(times)) % ways, axis=1)
        numbers = (clean.indices[:, None] * ways + turns).ravel()
        return cls(indices=numbers, name=f"turned {clean.name}", clean=clean, quarters=quarters, times=times)

    @property
    def ways(self) -> int:
        """How many ways of turning there are, none among them."""
        return 4 // self.quarters

    @property
    def content(self) -> Any:
        return [self.clean.content, TASK, self.quarters]

    def batches(self, indices: Int64[np.ndarray, "m"], preprocessing: Preprocessing) -> Iterator[Batch]:
        images, begin = indices // self.ways, 0
        for batch in self.clean.batches(np.unique(images), preprocessing):
            upright, bad = batch.samples.numpy(), {one.sample: one for one in batch.bad}
            # Images come in their order, readable or not, and so do the numbers of them turned.
            end = int(np.searchsorted(images, max([*upright, *bad]), side="right"))
            own, of, begin = indices[begin:end], images[begin:end], end
            spoilt = tuple(
                bad[image]._replace(sample=number)
                for number, image in zip(own.tolist(), of.tolist(), strict=True)
                if image in bad
            )
            # No more at a time than the clean images come by.
            for numbers in np.array_split(own[np.isin(of, upright)], self.times):
                places = torch.from_numpy(np.searchsorted(upright, numbers // self.ways))
                labels = self.labels(numbers)
                turned = rotated(batch.images[places], labels * self.quarters)
                yield Batch(turned, torch.from_numpy(numbers), torch.from_numpy(labels), bad=spoilt)
                spoilt = ()

    def labels(self, samples: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m"]:
        return samples % self.ways

    def reference(self, sample: int) -> str:
        return self.clean.reference(sample // self.ways)


def rotated(images: Shaped[Tensor, "B C H W"], quarters: Int64[np.ndarray, "B"]) -> Shaped[Tensor, "B C H W"]:
    """Each of the images turned by so many quarters: square ones, or all by halves."""
    turned = [torch.rot90(image, number, (1, 2)) for image, number in zip(images, quarters.tolist(), strict=True)]
    return torch.stack(turned) if turned else images


def assess_rotations(
    panel: Panel,
    splits: Splits,
    *,
    limit: int = 20_000,
    bad_images: float = BAD_IMAGES,
    trained_on: str = "",
    entries: Sequence[Entry] = (),
    cache: FeatureCache | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """How often an evaluator tells by how much an image was turned, as entries of ``evaluation.json``.

    An image is turned by 0, 90, 180 or 270 degrees (0 or 180 where the encoder's input is oblong) as a function of its
    number, after it was prepared for the encoder, so that no edge or interpolation gives it away. Each is turned once,
    but where there are fewer to test on than ``limit`` allows turned ones, each of these in as many ways as it does
    allow. The intervals are of the images then: it is their number that says how far an answer could move.

    Args:
        splits: the test part is the data's own; without one the images are dealt into five folds, in which each is
            tested on once, or a fifth is held out where they are more than may be tested on. Labels play no part.
        limit: at most so many images to learn on, and a quarter of it to test on.
        bad_images: share of the images (0 to 1) that may be unreadable.
        trained_on: fingerprint of the images that the encoder was trained on, where it is known.
        entries: evaluators, of which k-NN and its kin are asked (without any: k-NN).
        cache: where features, and what evaluators found in them, are looked for and kept; none are without it.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: too few images, or too many that cannot be read.
    """
    begin = time.perf_counter()
    parts = _parts(splits, limit, trained_on)
    tested = len(parts.held.indices)
    _refuse_few(counted(len(parts.learn.indices), tested, folded=parts.folded), limit)
    nearest = _nearest(entries) or _nearest(quick(panel.device))
    size = panel.preprocessing.size
    turned = [Turned.for_size(parts.learn, size), Turned.for_size(parts.held, size, _tested(limit) // tested)]
    kinds = kinds_for(panel, nearest)
    note("features of turned images")
    taken = [extract_kinds(panel, part, kinds, cache) for part in turned]
    # An image that cannot be read is one, in however many ways it was asked for.
    bad = {
        (place % len(parts.each), one.sample // turned[0].ways): one
        for place, part in enumerate(taken)
        for one in part.bad
    }
    notes = unreadable([*bad.values()], sum(len(part.indices) for part in parts.each), bad_images)
    main, times = Kind(panel.subjects[0], LAST), turned[1].times
    labels = [part.parts[main].labels for part in taken]
    counts = counted(len(labels[0]), len(labels[1]) // times, folded=parts.folded)
    _refuse_few(counts, limit, " that can be read")
    sentence = parts.sentence
    if times > 1:
        sentence += f" Each image to test on was turned in {times} ways."
    subjects, bounded = by_subject(taken[0].parts, taken[1].parts)
    note("which way up the turned images are")
    judged = in_folds(remembering(cache), _dealt) if parts.folded else remembering(cache)
    record = run_suite(subjects, nearest, judged=_by_image(judged, times)).record()
    chance = float(np.bincount(labels[1]).max() / len(labels[1]))
    return {
        "data": splits.train.name,
        "classes": turned[0].ways,
        **counts,
        "times": times,
        "split": sentence,
        "images": digest_of(*parts.each),
        "notes": [*notes, *bounded, *_warned(record["rows"], chance)],
        "rows": [row | {"task": TASK} for row in record["rows"]],
        "differences": [row | {"task": TASK} for row in record["differences"]],
        "chance": {TASK: chance},
        "summary": f"{_asked(turned[1].ways)} {record['summary']}",
        "seconds": time.perf_counter() - begin,
    }


def _nearest(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.key == "knn"]


def _parts(splits: Splits, limit: int, trained_on: str) -> Parts:
    """The images to learn on and to test on."""
    train, test = splits.train, splits.test
    folded = test is None and len(train) <= _tested(limit)
    if test is not None:
        learn, held, sentence = np.arange(len(train)), np.arange(len(test)), splits.sentence
    else:
        if folded:
            learn = held = np.arange(len(train))
        else:
            order, few = draws.permutation(len(train), "rotation split"), len(train) // FOLDS
            learn, held = np.sort(order[few:]), np.sort(order[:few])
        test, sentence = train, IN_FOLDS if folded else FIFTH_OF_ALL
        if trained_on and trained_on == train.fingerprint:
            sentence += " The encoder saw these images in training, upright."
    return Parts(
        learn=Chosen(source=train, indices=at_most(learn, limit), name="train"),
        held=Chosen(source=test, indices=at_most(held, _tested(limit)), name="test"),
        sentence=sentence,
        folded=folded,
    )


def _dealt(train: Part, test: Part) -> Dealt:
    """The folds of images each of which the test part has once or several times, one after the other."""
    folds = draws.permutation(len(train), "rotation folds") % FOLDS
    return folds, np.repeat(folds, len(test) // len(train))


def _refuse_few(counts: dict[str, int], limit: int, which: str = "") -> None:
    learn, test = counts["train_images"], counts["test_images"]
    if learn < _FEWEST or test < _FEWEST // 4:
        raise InputError(
            f"{learn} images{which} to learn on and {test} to test on are too few to ask which way up they are: it "
            f"takes {_FEWEST} and {_FEWEST // 4} (--limit is {limit:,})"
        )


def _tested(limit: int) -> int:
    """How many turned images are tested on, at most."""
    return max(2, limit // 4)


def _by_image(judged: Judge, times: int) -> Judge:
    """A judge of images each of which is there ``times`` over, one after the other."""
    if times == 1:
        return judged

    def grouped(evaluator: Evaluator, train: Part, test: Part) -> Found:
        found = judged(evaluator, train, test)
        answers = {name: right.reshape(-1, times) for name, right in found.correct.items()}
        scores = dict(found.scores)
        for name, right in answers.items():
            scores[f"{name}_low"], scores[f"{name}_high"] = wilson_of_groups(right, found.worth)
        return replace(found, scores=scores, correct=answers)

    return grouped


def _asked(ways: int) -> str:
    turns = "a quarter, a half or three quarters" if ways == 4 else "a half"
    return f"Each image was turned by {turns} or not at all, and the features asked which."


def _warned(rows: Sequence[dict[str, Any]], chance: float) -> list[str]:
    """A note where nobody can tell: then the images have no up and down, and the measure says nothing."""
    if max((row["low"] for row in rows if row["metric"] == "accuracy"), default=0.0) > chance:
        return []
    return [
        f"Nothing that was asked, raw pixels neither, clearly does better than to guess ({100 * chance:.1f}%): these "
        f"images seem to have no up and down, and then this says nothing of an encoder."
    ]

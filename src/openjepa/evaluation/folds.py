"""Few labelled images, each tested on once: by what was learned on the others of five folds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from openjepa.evaluation.features import Classifier, Evaluator, Grader, Grades, Part, shares_of
from openjepa.evaluation.split import FOLDS, folds
from openjepa.evaluation.suite import Found, Judge

# What an image is worth in an interval where what is asked of it was learned on the others: folds share most of what
# they learned on, and so its luck. Of 100 to 1,000 images of two data sets the shares of right answers of k-NN and of
# the linear probe, and their differences, spread over 0.90 to 1.30 times what those of images that nothing was learned
# on would (``benchmarks/folds.py``); this makes intervals 1.22 times as wide. Elsewhere it is taken over from there.
WORTH = 2 / 3

# The folds of the images to learn on, and of those to test on.
Dealt = tuple[Int64[np.ndarray, "train"], Int64[np.ndarray, "test"]]
Deal = Callable[[Part, Part], Dealt]


def by_class(train: Part, test: Part) -> Dealt:
    """Both parts are of the same images, the test part perhaps several times over, and every fold has its share of
    every class. Raises ValueError where their labels say that they are not."""
    dealt, times = folds(train.labels), len(test) // len(train)
    if not np.array_equal(np.tile(train.labels, times), test.labels):
        raise ValueError(f"folds are of one set of images, got {len(train)} and {len(test)} of other labels")
    return dealt, np.tile(dealt, times)


def medians(settings: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every setting that all folds have the median over them, each of which chose its own."""
    shared = [name for name in settings[0] if all(name in one for one in settings)]
    return {name: float(np.median([one[name] for one in settings])) for name in shared}


def in_folds(judged: Judge, deal: Deal = by_class) -> Judge:
    """A judge of which every test image is asked of what an evaluator learned on the other folds alone.

    Right answers and grades are those of all folds, in the test part's order, with intervals of :data:`WORTH` times as
    many images; what each fold chose (C, say) is told by its median. An evaluator that tells no answers image by image
    is asked in the first fold alone.
    """

    def pooled(evaluator: Evaluator, train: Part, test: Part) -> Found:
        learn, held = deal(train, test)

        def found_in(fold: int) -> Found:
            return judged(evaluator, train.take(np.flatnonzero(learn != fold)), test.take(np.flatnonzero(held == fold)))

        if not isinstance(evaluator, Classifier | Grader):
            return found_in(0)
        found = [found_in(fold) for fold in range(FOLDS)]
        # Answers come fold by fold; back to the images' order.
        back = np.argsort(np.argsort(held, kind="stable"))
        # What is measured in some folds alone (a k or a share of the labels that others have too few images for) is not
        # of all images.
        named = [name for name in found[0].correct if all(name in one.correct for one in found)]
        correct = {name: np.concatenate([one.correct[name] for one in found])[back] for name in named}
        graded = [name for name in found[0].grades if all(name in one.grades for one in found)]
        grades = {name: np.concatenate([one.grades[name] for one in found], 1)[:, back] for name in graded}
        settings = medians([one.settings for one in found])
        scores = shares_of(correct, WORTH) | Grades(measures=grades).scores(WORTH) | settings
        return Found(scores=scores, correct=correct, grades=grades, dimensions=train.dimensions, worth=WORTH)

    return pooled

"""Fine-tune a copy of an encoder on somebody's labelled images, beside the same training from random weights."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from openjepa.assessment.extraction import BAD_IMAGES, Chosen
from openjepa.assessment.parts import Parts, chosen_parts, left_to_judge, of_classes
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Splits
from openjepa.data.loader import BadRecord
from openjepa.data.pixels import alike
from openjepa.errors import InputError
from openjepa.evaluation.answers import packed
from openjepa.evaluation.features import Features
from openjepa.evaluation.finetune import Backbone, FineTuning, Labelled
from openjepa.evaluation.intervals import paired_difference
from openjepa.evaluation.split import check_parts
from openjepa.evaluation.suite import TARGET
from openjepa.progress import progress

TASK, SCRATCH = "fine-tuning", "from scratch"


def assess_finetuning(
    backbones: tuple[Backbone, Backbone],
    splits: Splits,
    *,
    preprocessing: Preprocessing,
    subject: str = TARGET,
    settings: FineTuning | None = None,
    limit: int = 1000,
    test_limit: int = 5000,
    bad_images: float = BAD_IMAGES,
    trained_on: str = "",
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Accuracies after fine-tuning, as entries of ``evaluation.json`` with task "fine-tuning".

    The random weights learn at one rate in all layers (``layer_decay`` 1): rates that shrink towards the input keep
    what a trained network knows there, and random weights know nothing.

    Args:
        backbones: the encoder that is judged, and one of its shape with random weights.
        preprocessing: of the images, for both.
        subject: the judged encoder's name in the rows.
        splits: labelled images; the test part is the data's own, or a fifth of each class.
        settings: of the training (None: the defaults, with mirror images for colour photos).
        limit: at most so many images to learn on, chosen by a fixed seed.
        test_limit: at most so many images to test on.
        bad_images, trained_on: as for :func:`openjepa.assessment.labelled.assess`.
        note: told what is being done, and before the training how long it will take.

    Raises:
        InputError: the images have no labels, are too few, or too many cannot be read.
    """
    begin = time.perf_counter()
    settings = settings or FineTuning()
    settings = replace(settings, flip=settings.flip or preprocessing.channels == 3)
    _refuse(splits, limit, test_limit)
    # Once: a training in every fold would take five times as long.
    parts = chosen_parts(splits, limit, test_limit, trained_on=trained_on)
    train, test, notes = _read(preprocessing, parts, bad_images)
    steps = settings.steps(train.labels)
    total, each = steps * len(backbones), settings.seconds_a_step(backbones[0], train)
    note(
        f"fine-tuning on {len(train.labels):,} images, {len(backbones)} x {steps:,} steps at {1000 * each:.0f} ms: "
        f"about {_duration(total * each)} ({len(settings.rates)} learning rates are tried first)"
    )
    outcomes, done = {}, 0
    with progress("fine-tuning") as advance:

        def stepped() -> None:
            nonlocal done
            done += 1
            advance(done, total)

        for name, backbone in zip((subject, SCRATCH), backbones, strict=True):
            own = replace(settings, layer_decay=1.0) if name == SCRATCH else settings
            outcomes[name] = own.classify(backbone, train, test, stepped)
    rows = []
    for name, outcome in outcomes.items():
        scores = outcome.scores()
        about = {"task": TASK, "features": name, "evaluator": settings.name, "metric": "accuracy"}
        measured = {"value": scores["accuracy"], "low": scores["accuracy_low"], "high": scores["accuracy_high"]}
        rows.append(about | measured | {"dimensions": backbones[0].width, "settings": outcome.settings})
    rows[0]["answers"] = packed(outcomes[subject].correct)
    found = paired_difference(outcomes[subject].correct, outcomes[SCRATCH].correct)
    row = {"task": TASK, "features": subject, "against": SCRATCH, "evaluator": settings.name, "metric": "accuracy"}
    row |= asdict(found)
    clear = "" if found.verdict != "unclear" else ", not clear"
    return {
        "data": splits.train.name,
        "classes": len(np.unique(train.labels)),
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "split": parts.sentence,
        "notes": notes,
        "rows": rows,
        "differences": [row],
        "summary": f"Fine-tuned, the {subject} is right for {100 * rows[0]['value']:.1f}% of the test images: "
        f"{100 * found.value:+.1f} points against the same training {SCRATCH} (95% interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}{clear}).",
        "seconds": time.perf_counter() - begin,
    }


def _refuse(splits: Splits, limit: int, test_limit: int) -> None:
    train = splits.train
    if train.labels is None or len(train.classes) < 2:
        raise InputError(
            f"{train.name} has no labels ({train.unlabelled}), and fine-tuning learns labels; "
            "put the images of each class in a folder of its own"
        )
    if min(limit, test_limit) < 8:
        raise InputError(f"fine-tuning needs 8 images or more to learn on and to test on, got {limit} and {test_limit}")


def _read(preprocessing: Preprocessing, parts: Parts, bad_images: float) -> tuple[Labelled, Labelled, list[str]]:
    """The images to learn on and to test on, prepared, and notes on those that could not be read."""
    bad: list[BadRecord] = []
    train, test = (_prepared(preprocessing, part, bad) for part in parts.each)
    classes, notes = left_to_judge(parts, (train.labels, test.labels), bad, bad_images)
    train, test = (of_classes(part, classes) for part in (train, test))
    # The checks are those of the probes; the images' mean colour stands in for features.
    check_parts(*(Features(part.images.float().mean((2, 3)).numpy(), part.labels, "images") for part in (train, test)))
    return train, test, notes


def _prepared(preprocessing: Preprocessing, part: Chosen, bad: list[BadRecord]) -> Labelled:
    """The images of a part; ``bad`` takes what cannot be read."""
    images, labels, done = [], [], 0
    with progress("images") as advance:
        for batch in part.batches(part.indices, preprocessing):
            bad += batch.bad
            done += len(batch.samples) + len(batch.bad)
            if len(batch.samples):
                images.append(batch.images)
                labels.append(batch.labels.numpy())
            advance(done, len(part.indices))
    if not images:
        raise InputError(f"{part.source.name} holds no image with a label that can be read")
    return Labelled(images=torch.cat(alike(images)), labels=np.concatenate(labels))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"

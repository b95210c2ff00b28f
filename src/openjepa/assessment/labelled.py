"""Judge an encoder on somebody's labelled images, always beside a random encoder of its shape and raw pixels."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openjepa import draws
from openjepa.data.base import Source, Splits
from openjepa.data.loader import ordered_batches
from openjepa.encoder import Encoder
from openjepa.errors import InputError
from openjepa.evaluation.features import extract, raw_pixels
from openjepa.evaluation.spectrum import rankme
from openjepa.evaluation.split import split
from openjepa.evaluation.suite import PIXELS, RANDOM, TARGET, evaluate
from openjepa.pretrained import Pretrained

# Of the random encoder's weights; any number but a usual run's seed.
_RANDOM_SEED = 20_231_108


def assess(
    pretrained: Pretrained,
    splits: Splits,
    *,
    limit: int = 20_000,
    command: str = "",
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """The content of ``evaluation.json``: accuracies with their intervals, RankMe, and a sentence that sums up.

    Args:
        splits: the test part is the data's own, or a fifth of each class held out of the train part.
        limit: at most so many images to learn on, and a quarter of it to test on; chosen by a fixed seed.
        command: what a person types to get the same again, for the record.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: too few images or classes.
    """
    if limit < 8:
        raise InputError(f"--limit must be at least 8 images, got {limit}")
    begin = time.perf_counter()
    train, test = splits.train, splits.test
    facts: dict[str, Any] = {"data": train.name, "classes": len(train.classes), "command": command}
    if train.labels is None or len(train.classes) < 2:
        return facts | _unlabelled(pretrained, train, limit, note) | {"seconds": time.perf_counter() - begin}
    labelled = np.flatnonzero(train.labels >= 0)
    if test is not None and test.labels is not None:
        parts = (train, labelled), (test, np.flatnonzero(test.labels >= 0))
        sentence = splits.sentence
    else:
        learn, held = split(train.labels)
        parts = (train, learn), (train, held)
        sentence = (
            "A fifth of each class was held out to test on; the encoder saw these images in training, without labels."
        )
    (learn_source, learn), (test_source, held) = parts
    learn, held = _at_most(learn, limit), _at_most(held, max(2, limit // 4))
    encoders, pixels = _encoders(pretrained)
    note("features of the images to learn on")
    trained = extract(encoders, _batches(pretrained, learn_source, learn))
    note("features of the images to test on")
    tested = extract(encoders, _batches(pretrained, test_source, held))
    note("k-NN and linear probe")
    found = evaluate({name: (trained[name], tested[name]) for name in encoders})
    return facts | {
        "train_images": len(trained[TARGET]),
        "test_images": len(tested[TARGET]),
        "split": sentence,
        "pixels": list(pixels),
        **found.record(),
        "seconds": time.perf_counter() - begin,
    }


def _unlabelled(pretrained: Pretrained, source: Source, limit: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Without labels: RankMe, which says how many directions the features use, not what they are good for."""
    encoders, pixels = _encoders(pretrained)
    chosen = _at_most(np.arange(len(source)), limit)
    note("features")
    found = extract(encoders, _batches(pretrained, source, chosen))
    measures = {name: {"rankme": rankme(torch.from_numpy(features.values))} for name, features in found.items()}
    return {
        "train_images": len(chosen),
        "test_images": 0,
        "split": f"{source.name} has no labels (no class folders, no label column), so nothing can be classified.",
        "pixels": list(pixels),
        "rows": [],
        "spectrum": measures,
        "summary": "Without labels only the spread of the features can be measured; see RankMe.",
    }


def _encoders(pretrained: Pretrained) -> tuple[dict[str, Callable[[Tensor], Tensor]], tuple[int, int]]:
    """The three kinds of features as functions of a batch of prepared images, and the size of the raw pixels."""
    config = replace(pretrained.encoder.config, positions="sincos")
    random = Encoder(config, generator=torch.Generator().manual_seed(_RANDOM_SEED))
    other = Pretrained(random, pretrained.preprocessing).to(pretrained.device)
    rows, columns = pretrained.preprocessing.size
    used = raw_pixels(torch.zeros(1, config.channels, rows, columns))[1]
    encoders: dict[str, Callable[[Tensor], Tensor]] = {
        TARGET: lambda images: pretrained.features(images).mean(1),
        RANDOM: lambda images: other.features(images).mean(1),
        PIXELS: lambda images: raw_pixels(images)[0],
    }
    return encoders, used


def _batches(pretrained: Pretrained, source: Source, chosen: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    workers = 0 if len(chosen) < 1000 else 1
    for batch in ordered_batches(source, pretrained.preprocessing, chosen, batch=128, workers=workers):
        if len(batch.samples):
            yield batch.images, batch.labels


def _at_most(indices: np.ndarray, count: int) -> np.ndarray:
    return indices if len(indices) <= count else np.sort(indices[draws.permutation(len(indices), "limit")[:count]])

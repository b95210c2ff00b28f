"""Judge an encoder on scenes of several objects: how many, how near, and where (see openjepa.data.scenes)."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Panel, reading
from openjepa.assessment.outcomes import remembering
from openjepa.assessment.sheets import new_picture, sheet
from openjepa.data.augmentation import Preprocessing
from openjepa.data.scenes import TASKS, Scenes
from openjepa.errors import InputError
from openjepa.evaluation.catalogue import quick
from openjepa.evaluation.features import Features, Part, extract
from openjepa.evaluation.suite import LAST, Entry, run_suite
from openjepa.progress import progress

_BATCH = 64
_PICTURED = (4, 8)
FEWEST_SCENES = 200


def assess_scenes(
    panel: Panel,
    *,
    train: int = 4000,
    test: int = 2000,
    seed: int = 0,
    entries: Sequence[Entry] | None = None,
    pictures: Path | None = None,
    cache: FeatureCache | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Accuracies on count, nearest distance and position, as entries of ``evaluation.json`` with their ``task``.

    Args:
        train: scenes to learn on, of items of the sample's train part.
        test: scenes to test on, of items of its test part.
        seed: of the scenes.
        entries: what judges the features (the quick evaluators).
        pictures: a folder for ``scenes.png``, a sheet of scenes with their labels.
        cache: where what evaluators found is looked for and kept.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: an encoder's input too small to draw in, or a picture that exists.
    """
    begin = time.perf_counter()
    size, channels = panel.preprocessing.size, panel.preprocessing.channels
    if min(size) < 16:
        raise InputError(f"scenes need an encoder of at least 16 x 16 px, this one reads {size[0]} x {size[1]}")
    where = new_picture(pictures, "scenes.png")
    parts: dict[Literal["train", "test"], int] = {"train": train, "test": test}
    scenes = {part: Scenes(seed=seed, size=size, channels=channels, part=part) for part in parts}
    if where is not None:
        _picture(scenes["test"], panel.preprocessing).save(where)
    entries = entries or quick(panel.device)
    read = reading(panel, {LAST, *(entry.view for entry in entries)})
    found = {}
    for part, count in parts.items():
        note(f"features of the {count:,} scenes to {'learn' if part == 'train' else 'test'} on")
        found[part] = extract(read, _batches(scenes[part], count))
    rows, differences, said, chance = [], [], [], {}
    for task in TASKS:
        note(f"scenes: {task}")
        labels = {part: scenes[part].labels(np.arange(parts[part]))[task] for part in parts}
        subjects: dict[str, dict[str, tuple[Part, Part]]] = {}
        for kind in found["train"]:
            learn, held = (_labelled(found[part][kind], labels[part]) for part in parts)
            subjects.setdefault(kind.subject, {})[kind.view] = learn, held
        record = run_suite(subjects, entries, judged=remembering(cache)).record()
        called = f"scenes: {task}"
        rows += [row | {"task": called} for row in record["rows"]]
        differences += [row | {"task": called} for row in record["differences"]]
        chance[called] = _most_common(*(labels[part][labels[part] >= 0] for part in parts))
        said.append(f"Scenes, {task} (always the commonest class: {100 * chance[called]:.1f}%). {record['summary']}")
    return {
        "data": f"scenes of {size[0]} x {size[1]} px, seed {seed}",
        "train_images": train,
        "test_images": test,
        "split": "Scenes to learn on and to test on are made of different items, the sample's train and test parts.",
        "rows": rows,
        "differences": differences,
        "chance": chance,
        "summary": "\n".join(said),
        "pictures": [str(where)] if where else [],
        "seconds": time.perf_counter() - begin,
    }


def _batches(scenes: Scenes, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    with progress("scenes") as advance:
        for start in range(0, count, _BATCH):
            index = np.arange(start, min(count, start + _BATCH))
            yield scenes.draw(index), torch.from_numpy(index)
            advance(int(index[-1]) + 1, count)


def _labelled(features: Features, labels: np.ndarray) -> Features:
    """The features with a task's labels; scenes to which the question does not apply are left out."""
    asked = np.flatnonzero(labels >= 0)
    return Features(features.values[asked], labels[asked], features.name)


def _most_common(learn: np.ndarray, held: np.ndarray) -> float:
    """The accuracy of naming the train part's commonest class every time."""
    return float((held == np.bincount(learn).argmax()).mean())


def _picture(scenes: Scenes, preprocessing: Preprocessing) -> Image.Image:
    """The first scenes with their classes."""
    rows, columns = _PICTURED
    index = np.arange(rows * columns)
    images = preprocessing.pictures(scenes.draw(index))
    count, distance, position = (scenes.labels(index)[task] for task in TASKS)
    apart = [f"distance {one}" if one >= 0 else "alone" for one in distance]
    captions = [f"{count[i] + 1}; {apart[i]}; cell {position[i]}" for i in index]
    return sheet([list(images[row * columns : (row + 1) * columns]) for row in range(rows)], captions=captions)

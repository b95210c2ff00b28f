"""Judge an encoder on scenes of several objects: how many, how near, and where (see openjepa.data.scenes)."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image

from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Panel
from openjepa.assessment.extraction import Images, extract_kinds
from openjepa.assessment.labelled import by_subject, kinds_for
from openjepa.assessment.outcomes import remembering
from openjepa.assessment.sheets import new_picture, sheet
from openjepa.data.augmentation import Preprocessing
from openjepa.data.loader import Batch
from openjepa.data.scenes import TASKS, Scenes
from openjepa.errors import InputError
from openjepa.evaluation.catalogue import quick
from openjepa.evaluation.features import Part
from openjepa.evaluation.suite import Entry, run_suite
from openjepa.progress import progress

_BATCH = 64
_PICTURED = (4, 8)
FEWEST_SCENES = 200


@dataclass(frozen=True, kw_only=True)
class Drawn(Images):
    """Scenes, drawn at the encoder's size; a scene's number stands for its labels, of which it has one a task."""

    scenes: Scenes

    @property
    def data(self) -> str:
        height, width = self.scenes.size
        return f"scenes of {height} x {width} px, seed {self.scenes.seed}"

    @property
    def content(self) -> Any:
        # The first scenes stand for the items and for how scenes are drawn.
        first = hashlib.sha256(self.scenes.draw(np.arange(8)).numpy().tobytes()).hexdigest()
        return [self.data, self.scenes.channels, self.name, first]

    def batches(self, indices: Int64[np.ndarray, "m"], preprocessing: Preprocessing) -> Iterator[Batch]:
        with progress("scenes") as advance:
            for start in range(0, len(indices), _BATCH):
                chosen = indices[start : start + _BATCH]
                numbers = torch.from_numpy(chosen)
                yield Batch(images=self.scenes.draw(chosen), samples=numbers, labels=numbers)
                advance(start + len(chosen), len(indices))

    def labels(self, samples: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "m"]:
        return samples

    def reference(self, sample: int) -> str:
        return f"scene {sample}"


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
        entries: what judges the features (the quick evaluators); those of tokens see as many scenes as their bound
            allows, which a note says.
        pictures: a folder for ``scenes.png``, a sheet of scenes with their labels.
        cache: where features, and what evaluators found in them, are looked for and kept; none are without it.
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
    drawn = {part: Drawn(indices=np.arange(parts[part]), name=part, scenes=scenes[part]) for part in parts}
    kinds, found = kinds_for(panel, entries), {}
    for part, count in parts.items():
        note(f"features of the {count:,} scenes to {'learn' if part == 'train' else 'test'} on")
        found[part] = extract_kinds(panel, drawn[part], kinds, cache).parts
    rows, differences, said, chance, notes = [], [], [], {}, list[str]()
    for task in TASKS:
        note(f"scenes: {task}")
        labels = {part: scenes[part].labels(np.arange(parts[part]))[task] for part in parts}
        learned, held = (
            {kind: _labelled(features, labels[part]) for kind, features in found[part].items()} for part in parts
        )
        subjects, bounded = by_subject(learned, held)
        notes += [f"{task}: {sentence}" for sentence in bounded]
        record = run_suite(subjects, entries, judged=remembering(cache)).record()
        called = f"scenes: {task}"
        rows += [row | {"task": called} for row in record["rows"]]
        differences += [row | {"task": called} for row in record["differences"]]
        chance[called] = _most_common(*(labels[part][labels[part] >= 0] for part in parts))
        said.append(f"Scenes, {task} (always the commonest class: {100 * chance[called]:.1f}%). {record['summary']}")
    return {
        "data": drawn["test"].data,
        "train_images": train,
        "test_images": test,
        "split": "Scenes to learn on and to test on are made of different items, the sample's train and test parts.",
        "notes": notes,
        "rows": rows,
        "differences": differences,
        "chance": chance,
        "summary": "\n".join(said),
        "pictures": [str(where)] if where else [],
        "seconds": time.perf_counter() - begin,
    }


def _labelled(features: Part, labels: np.ndarray) -> Part:
    """The features with a task's labels; scenes to which the question does not apply are left out."""
    own = labels[features.labels]
    asked = np.flatnonzero(own >= 0)
    return type(features)(features.values[asked], own[asked], features.name)


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

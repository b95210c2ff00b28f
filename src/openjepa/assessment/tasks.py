"""One judgement of everything: the classes of images, or which way up they are, spoilt images, scenes, masks, and
fine-tuning, in one record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from openjepa.assessment.cache import FeatureCache
from openjepa.assessment.encoders import Panel
from openjepa.assessment.extraction import BAD_IMAGES
from openjepa.assessment.finetuning import assess_finetuning
from openjepa.assessment.labelled import UNEVEN, assess, silent
from openjepa.assessment.patch_features import grid_of
from openjepa.assessment.robustness import assess_robustness
from openjepa.assessment.rotations import TASK as ROTATION
from openjepa.assessment.rotations import assess_rotations
from openjepa.assessment.scenes import FEWEST_SCENES, assess_scenes
from openjepa.assessment.segmentation import assess_segmentation
from openjepa.assessment.sheets import new_picture
from openjepa.data.base import Splits
from openjepa.errors import InputError
from openjepa.evaluation.finetune import FineTuning
from openjepa.evaluation.suite import Entry, Progress
from openjepa.files import expanded

# The tasks beside the classes of whole images, by the names that --only knows them by.
TASKS = (ROTATION, "robustness", "scenes", "finetune")


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """What is asked beside the classes of whole images.

    Attributes:
        names: of :data:`TASKS`.
        scene_count: how many scenes to learn on and to test on.
        entries: the evaluators of scenes (none: the quick ones), and those of turned images among them.
        finetune_epochs: passes over the labelled images.
        finetune_images: at most so many of them.
        segmentation: a folder of images and one of masks.
        pictures: a folder for pictures of scenes and masks to look at.
    """

    names: tuple[str, ...] = ()
    scene_count: tuple[int, int] = (4000, 2000)
    entries: tuple[Entry, ...] = ()
    finetune_epochs: int = 10
    finetune_images: int = 1000
    segmentation: tuple[Path, Path] | None = None
    pictures: Path | None = None

    def __post_init__(self) -> None:
        if self.finetune_epochs < 1:
            raise InputError(f"--finetune-epochs must be at least 1, got {self.finetune_epochs}")
        if "scenes" in self.names and min(self.scene_count) < FEWEST_SCENES:
            raise InputError(
                f"scenes are judged on at least {FEWEST_SCENES} to learn on and {FEWEST_SCENES} to test on, got "
                f"{self.scene_count[0]} and {self.scene_count[1]}"
            )
        if self.finetune_images < 8:
            raise InputError(f"--finetune-images must be at least 8, got {self.finetune_images}")
        if self.pictures is not None and not self.segmentation and "scenes" not in self.names:
            raise InputError("--pictures are drawn of scenes and of --segmentation: ask for one of them")


def judge(
    panel: Panel,
    splits: Splits | None,
    *,
    entries: Sequence[Entry],
    tasks: Tasks,
    limit: int = 20_000,
    bad_images: float = BAD_IMAGES,
    trained_on: str = "",
    command: str = "",
    cache: FeatureCache | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """The content of ``evaluation.json``: that of :func:`assess`, with the rows of every task asked for.

    Of images without labels it is asked which way up they are, for that is what can be.

    Args:
        splits: the images; None where only tasks are asked that bring their own.
        entries: the evaluators of whole images.
        bad_images: share of the images of each task (0 to 1) that may be unreadable.
        trained_on: fingerprint of the images that the encoder was trained on, where it is known.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: a task cannot be done with what was given.
    """
    begin = time.perf_counter()
    # What is in the way is told before anything is worked on.
    if tasks.segmentation is not None:
        grid_of(panel)
    for asked, name in (("scenes" in tasks.names, "scenes.png"), (tasks.segmentation is not None, "segmentation.png")):
        if asked:
            new_picture(tasks.pictures, name)
    if splits is not None and entries:
        found = assess(
            panel,
            splits,
            entries=entries,
            limit=limit,
            bad_images=bad_images,
            trained_on=trained_on,
            command=command,
            cache=cache,
            progress=progress,
        )
    else:
        found = {"data": "none", "classes": 0, "command": command, "encoder": panel.fingerprint}
        found |= {"train_images": 0, "test_images": 0}
        found |= {"split": "Whole images were not asked about.", "pixels": list(panel.pixels), "rows": []}
        found |= {"differences": [], "spectrum": {}, "summary": "", "notes": []}
    labelled = splits is not None and splits.train.labels is not None and len(splits.train.classes) > 1
    notes = [*found.get("notes", []), *_missing(labelled, tasks)]
    if entries and splits is not None and not labelled:
        tasks = replace(tasks, names=tuple(dict.fromkeys((ROTATION, *tasks.names))), entries=tuple(entries))
    asked = _asked(panel, splits, labelled, tasks, limit, bad_images, trained_on, cache, note)
    for name, assess_task in asked.items():
        try:
            part = assess_task()
        except InputError as error:
            # What was measured is worth more than what could not be; alone, the task's own words are the answer.
            if not entries and not found["rows"] and len(asked) == 1:
                raise
            notes.append(f"{name} could not be measured: {error}.")
            continue
        found["rows"] = [*found["rows"], *part["rows"]]
        found["differences"] = [*found.get("differences", []), *part["differences"]]
        notes += [f"{name}: {said}" for said in part.get("notes", ()) if said not in notes]
        facts = ("data", "images", "classes", "train_images", "test_images", "folds", "times")
        facts += ("split", "chance", "summary", "pictures", "seconds")
        found.setdefault("tasks", {})[name] = {key: part[key] for key in facts if key in part} | {"command": command}
    if not found["rows"] and not asked and not entries:
        raise InputError("; ".join(notes) or "nothing was asked for")
    return found | {"notes": notes, "seconds": time.perf_counter() - begin}


def _asked(
    panel: Panel,
    splits: Splits | None,
    labelled: bool,
    tasks: Tasks,
    limit: int,
    bad_images: float,
    trained_on: str,
    cache: FeatureCache | None,
    note: Callable[[str], None],
) -> dict[str, Callable[[], dict[str, Any]]]:
    """The tasks that can be done, in their order, each by its name."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    images = {"bad_images": bad_images, "trained_on": trained_on, "note": note}
    if ROTATION in tasks.names and splits is not None:
        found[ROTATION] = partial(
            assess_rotations, panel, splits, limit=limit, entries=tasks.entries, cache=cache, **images
        )
    if "robustness" in tasks.names and splits is not None and labelled:
        found["robustness"] = partial(assess_robustness, panel, splits, limit=limit, cache=cache, **images)
    if "scenes" in tasks.names:
        train, test = tasks.scene_count
        found["scenes"] = partial(
            assess_scenes,
            panel,
            train=train,
            test=test,
            entries=tasks.entries,
            pictures=tasks.pictures,
            cache=cache,
            note=note,
        )
    if tasks.segmentation is not None:
        pictures, masks = (expanded(path) for path in tasks.segmentation)
        found["segmentation"] = partial(
            assess_segmentation,
            panel,
            pictures,
            masks,
            limit=limit,
            bad_images=bad_images,
            pictures=tasks.pictures,
            cache=cache,
            note=note,
        )
    if "finetune" in tasks.names and splits is not None and labelled:
        settings, tests = FineTuning(epochs=tasks.finetune_epochs), max(8, limit // 4)
        found["fine-tuning"] = partial(
            assess_finetuning,
            panel.backbones,
            splits,
            preprocessing=panel.preprocessing,
            subject=panel.subjects[0],
            settings=settings,
            limit=tasks.finetune_images,
            test_limit=tests,
            **images,
        )
    return found


def _missing(labelled: bool, tasks: Tasks) -> list[str]:
    notes = []
    if not labelled and (left := [name for name in ("robustness", "finetune") if name in tasks.names]):
        notes.append(f"not measured, for the images have no labels of two classes or more: {', '.join(left)}")
    return notes


def _measure(row: dict[str, Any]) -> tuple[str, str]:
    return row.get("task", "classes"), row["evaluator"]


_LABELLED = 2


def _whole(record: dict[str, Any]) -> int:
    """What a record says of whole images: of labelled ones (2), of others (1), nothing (0)."""
    return _LABELLED if record.get("test_images") else int(bool(record.get("train_images")))


# What settles which scenes are drawn.
_SCENES_OF = ("data", "train_images", "test_images")


def joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A record of what was measured ``now``, and of what was measured ``before`` and not now.

    Only of the same encoder; and where the labelled images are others than before, what was measured on them is left
    behind, as is what was asked of other images that were turned, or of the same more or less often, and of other
    scenes. A look at images without labels leaves what was measured on labelled ones, and one at no whole images what
    was measured on any.
    """
    if before.get("encoder") != now.get("encoder"):
        return now
    fresh, stale = _whole(now), _whole(before)
    other = fresh == stale == _LABELLED and before.get("images") != now.get("images")
    turned = [record.get("tasks", {}).get(ROTATION) for record in (before, now)]
    asked = [(facts.get("images"), facts.get("times", 1)) for facts in turned if facts is not None]
    turned_others = len(set(asked)) == 2
    drawn = [record["tasks"]["scenes"] for record in (before, now) if "scenes" in record.get("tasks", {})]
    other_scenes = len({tuple(facts.get(name) for name in _SCENES_OF) for facts in drawn}) == 2
    measured = set(map(_measure, now["rows"]))

    def kept(row: dict[str, Any]) -> bool:
        task = row.get("task", "classes").split(":")[0]
        others = {ROTATION: turned_others, "scenes": other_scenes, "segmentation": False}
        left = others.get(task, other)
        return not left and _measure(row) not in measured

    rows = [*(row for row in before.get("rows", []) if kept(row)), *now["rows"]]
    differences = [*(row for row in before.get("differences", []) if kept(row)), *now.get("differences", [])]
    names = {row.get("task", "classes").split(":")[0] for row in rows}
    tasks = {name: facts for name, facts in before.get("tasks", {}).items() if name in names} | now.get("tasks", {})
    mended = tuple(f"{name} could not be measured" for name in names)
    kinds = ("classes", ROTATION, "robustness", "scenes", "segmentation", "fine-tuning")
    of_tasks = tuple(f"{name}: " for name in kinds[1:])
    of_kept = tuple(f"{name}: " for name in tasks if name not in now.get("tasks", {}))

    def holds(note: str) -> bool:
        """Whether a note of before still stands: of a task, while its rows do; else while the images are the same."""
        if note.startswith(of_tasks):
            return note.startswith(of_kept)
        standing = not other if stale == _LABELLED else stale > fresh
        return standing and not note.startswith(mended) and not (fresh == _LABELLED and note.startswith(UNEVEN))

    notes = list(dict.fromkeys([*filter(holds, before.get("notes", [])), *now.get("notes", [])]))
    head = (now if fresh >= stale else before) | {"notes": notes}
    place = {name: number for number, name in enumerate(dict.fromkeys(map(_measure, before.get("rows", []))))}
    rows.sort(key=lambda row: (kinds.index(_measure(row)[0].split(":")[0]), place.get(_measure(row), len(place))))
    spectrum = head.get("spectrum") or before.get("spectrum", {})
    return head | {"rows": rows, "differences": differences, "spectrum": spectrum} | ({"tasks": tasks} if tasks else {})

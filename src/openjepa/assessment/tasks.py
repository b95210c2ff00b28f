"""The tasks beyond naming whole images: segmentation, scenes, and fine-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from openjepa.assessment.finetuning import assess_finetuning
from openjepa.assessment.scenes import assess_scenes
from openjepa.assessment.segmentation import assess_segmentation
from openjepa.assessment.sheets import new_picture
from openjepa.data.base import Splits
from openjepa.errors import InputError
from openjepa.evaluation.finetune import FineTuning
from openjepa.pretrained import Pretrained


def assess_tasks(
    pretrained: Pretrained,
    *,
    segmentation: tuple[Path, Path] | None = None,
    scenes: tuple[int, int] | None = None,
    labelled: Splits | None = None,
    limit: int = 20_000,
    finetune_epochs: int = 10,
    finetune_images: int = 1000,
    pictures: Path | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> dict[str, dict[str, Any]]:
    """What was found on each task that is asked for, by its name.

    Args:
        segmentation: a folder of images and one of masks.
        scenes: how many scenes to learn on and to test on.
        labelled: images to fine-tune on.
        limit: at most so many images with masks to learn on; a quarter of it to test on, for fine-tuning too.
        finetune_epochs: passes over the labelled images.
        finetune_images: at most so many of them.
        pictures: a folder for pictures to look at.
        note: told what is being done, for whoever waits.

    Raises:
        InputError: a task cannot be done with what was given.
    """
    if finetune_epochs < 1:
        raise InputError(f"--finetune-epochs must be at least 1, got {finetune_epochs}")
    if limit < 8:
        raise InputError(f"--limit must be at least 8 images, got {limit}")
    # Both are refused here, before the first of them is worked on.
    for asked, name in ((scenes, "scenes.png"), (segmentation, "segmentation.png")):
        if asked is not None:
            new_picture(pictures, name)
    found = {}
    if segmentation is not None:
        images, masks = (path.expanduser() for path in segmentation)
        found["segmentation"] = assess_segmentation(
            pretrained, images, masks, limit=limit, pictures=pictures, note=note
        )
    if scenes is not None:
        train, test = scenes
        found["scenes"] = assess_scenes(pretrained, train=train, test=test, pictures=pictures, note=note)
    if labelled is not None:
        settings = FineTuning(epochs=finetune_epochs)
        found["finetuning"] = assess_finetuning(
            pretrained, labelled, settings=settings, limit=finetune_images, test_limit=max(8, limit // 4), note=note
        )
    return found

"""What a plan says of a run: the facts of ``plan.json``, which are printed before it and reported after it."""

import math
import platform
from typing import Any

import torch

from openjepa._version import __version__
from openjepa.costing import BESIDES, Cost, drawn_masks, flops
from openjepa.data.base import Source, Splits, telling
from openjepa.data.copies import WORTHWHILE, Copies
from openjepa.data.survey import Levels, Survey
from openjepa.experiment import Experiment
from openjepa.training.distributed import Processes

# The share of images of a single value from which on the plan says how many there are.
_FLAT = 0.1


def facts(
    experiment: Experiment,
    splits: Splits,
    opened: str | None,
    seen: Survey,
    found: Levels,
    why: str,
    cost: Cost,
    processes: Processes,
) -> dict[str, Any]:
    """What ``plan.json`` says of a run that is about to begin: names to JSON values; seconds, bytes, pixels.

    Args:
        opened: what ``open_data`` was given, to open it again on resume.
        seen: what the headers of some images say.
        found: what their pixels are.
        why: how the recipe was chosen, in words.
        cost: of a step, measured.
    """
    bad = {error.reference: error for error in (*seen.bad, *found.bad)}
    source, training, encoder = splits.train, experiment.training, experiment.encoder
    objective, masks = experiment.objective(), drawn_masks(experiment, processes)
    counted = {
        "encoder": sum(p.numel() for p in objective.representation.parameters()),
        "trained": sum(p.numel() for p in objective.parameters() if p.requires_grad),
    }
    return {
        "data": {
            "name": source.name,
            "opened": opened,
            "images": len(source),
            "skipped": len(source.skipped),
            "skipped_example": ": ".join(telling(source.skipped)) if source.skipped else None,
            "looked_at": seen.looked_at,
            "unreadable": len(bad),
            "unreadable_example": str(next(iter(bad.values()))) if bad else None,
            "values": _values(source, seen, found),
            "flat": _flat(found),
            "remarks": _remarks(seen, encoder.channels),
            "sizes": seen.sizes,
            "tiny": _tiny(seen, encoder.patch),
            "channels": seen.channels,
            "classes": len(source.classes),
            "labelled": source.labels is not None,
            "unlabelled": source.unlabelled if source.labels is None else None,
            "split": splits.said,
            "fingerprint": source.fingerprint,
            "spread": source.spread,
            "copies": list(source.at_least) if isinstance(source, Copies) else None,
        },
        "recipe": {"name": experiment.recipe, "why": why},
        "objective": experiment.method,
        "image": list(encoder.signal),
        "patch": list(encoder.patch),
        "grid": list(encoder.grid.shape),
        "parameters": counted | {"predictor": counted["trained"] - counted["encoder"]},
        "masks": {
            "shape": _shape(experiment),
            "context_tokens": round(masks.context_valid.sum(1).double().mean().item()),
            "target_blocks": experiment.masks.targets if experiment.method == "ijepa" else 1,
            "target_tokens": masks.targets.shape[-1],
        },
        "steps": training.steps,
        "epochs": training.steps * training.batch / len(source),
        "batch": training.batch,
        "learning_rate": experiment.schedule.lr,
        "matrices_moved_by": experiment.optimizer.matrices,
        "flops_per_image": flops(objective, experiment, masks),
        "device": _device_name(processes.device),
        "processes": processes.world,
        "precision": training.precision,
        "threads": training.threads_together or torch.get_num_threads(),
        "versions": {"openjepa": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "loader": {
            "workers": training.workers,
            "batch_seconds": cost.batch,
            "waits": cost.waits,
            "copies_help": _copies_help(experiment, source, seen),
        },
        "estimate": {"seconds": training.steps * cost.step * (1 + BESIDES), "memory": cost.memory},
    }


def _values(source: Source, seen: Survey, found: Levels) -> dict[str, Any]:
    """Bits, range and white as the files have them, and mean and spread of each channel where white is 1."""
    white = {8: 255.0, 16: 65535.0}.get(seen.bits, source.float_white)
    return {
        "bits": seen.bits,
        "low": found.low * white,
        "high": found.high * white,
        "white": white,
        "mean": list(found.mean),
        "std": [0.0 if std == 1 else std for std in found.std],  # 1 stands for none
    }


def _flat(found: Levels) -> str | None:
    """How many images hold a single value, where they are more than a few."""
    if len(found.flat) <= _FLAT * found.looked_at:
        return None
    return f"{len(found.flat):,} of {found.looked_at:,} hold a single value all over (for example {found.flat[0]})"


def _remarks(seen: Survey, channels: int) -> list[str]:
    """How images are read that have more than one picture's colours, but for what ``channels`` keeps."""
    kept = f"--channels {channels} keeps it"
    told = {remark: count for remark, count in seen.remarks.items() if not remark.endswith(kept)}
    return [f"{remark} ({count:,} of {seen.remarked:,} files looked at)" for remark, count in told.items()]


def _tiny(seen: Survey, patch: tuple[int, ...]) -> str | None:
    """The image with the shortest side, where that is shorter than a patch's."""
    place, (height, width) = seen.tiniest
    return f"{place} of {height}x{width} px" if min(height, width) < min(patch) else None


def _copies_help(experiment: Experiment, source: Source, seen: Survey) -> bool:
    """Whether the images are, in the mean, so large that copies are worth their place, of a kind that copies are made
    of, and not copies already."""
    least = experiment.augmentation.at_least(experiment.preprocessing.size)
    copied = seen.bits == 8 and seen.channels in (1, 3)
    return copied and not isinstance(source, Copies) and math.prod(least) <= WORTHWHILE * seen.pixels


def _shape(experiment: Experiment) -> str:
    shapes = {"mae": "random", "denoising": "none, but noise"}
    return shapes.get(experiment.method, experiment.masks.shape)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"

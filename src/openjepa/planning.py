"""Before a run: look at the images, choose a recipe, measure a few steps, and say what will happen."""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from openjepa.costing import BESIDES, Cost, drawn_masks, flops, measure
from openjepa.data.base import Source, Splits
from openjepa.data.survey import Levels, Survey, levels, survey
from openjepa.errors import InputError
from openjepa.experiment import Experiment, Method
from openjepa.facts import facts
from openjepa.recipes.baselines import baseline
from openjepa.recipes.choice import choose, refuse_published, scaled
from openjepa.recipes.small import lengthened, long_from, paced
from openjepa.training.distributed import Processes
from openjepa.training.step import refuse_uneven

FEWEST_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person asked for, before the data were seen.

    Attributes:
        recipe: name, or ``auto``.
        objective: ``ijepa``, ``mae`` or ``denoising``; None is the saved experiment's, or ``ijepa``.
        channels: of the encoder; None takes the images'.
        image_size: height and width in pixels; None lets the recipe choose.
        minutes, epochs, steps, flops: the length of the run; at most one. ``flops`` are floating-point operations of
            the whole training, of which a step's are counted.
        watch_every: steps between looks at the representation; None lets the length decide.
        seed: of everything random; None is the saved experiment's, or 0.
        workers: loader processes; None takes as many as keep up with the steps, by measurement, whatever a saved
            experiment had.
        experiment: a saved experiment instead of a recipe.
        long: take the ``small`` recipe as it is for long runs, or for short ones; None lets the length decide.
    """

    recipe: str = "auto"
    objective: Method | None = None
    channels: int | None = None
    image_size: tuple[int, int] | None = None
    minutes: float | None = None
    epochs: float | None = None
    steps: int | None = None
    flops: float | None = None
    watch_every: int | None = None
    seed: int | None = None
    workers: int | None = None
    experiment: Experiment | None = None
    long: bool | None = None

    def __post_init__(self) -> None:
        lengths = {name: getattr(self, name) for name in ("minutes", "epochs", "steps", "flops")}
        given = {name: value for name, value in lengths.items() if value is not None}
        if len(given) > 1:
            raise InputError(f"give only one of {' and '.join(f'--{name}' for name in given)}")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise InputError(f"--{name} must be a number above 0, got {value}")
        if self.channels is not None and self.channels < 1:
            raise InputError(f"--channels must be 1 or more, got {self.channels}")
        if self.image_size is not None and min(self.image_size) < 2:
            raise InputError(f"--image-size needs a height and a width of 2 pixels or more, got {self.image_size}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be a whole number from 0 to {2**63 - 1}, got {self.seed}")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"--workers must be 0 or more, got {self.workers}")
        others = {
            "--recipe": self.recipe != "auto",
            "--channels": self.channels,
            "--image-size": self.image_size,
        }
        if self.experiment is not None and any(others.values()):
            raise InputError(
                f"--experiment brings a whole recipe and cannot go with {', '.join(o for o in others if others[o])}; "
                f"change its settings one by one instead (as --encoder.signal 64 64 --encoder.patch 8 8)"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run about to begin: the experiment, the facts of ``plan.json``, and whether it is a long one's."""

    experiment: Experiment
    facts: dict[str, Any]
    long: bool = False


def plan(
    splits: Splits,
    wishes: Wishes,
    processes: Processes,
    opened: str | None,
    override: Callable[[Experiment], Experiment] = lambda experiment: experiment,
    asked: Collection[str] = (),
    copied: Callable[[Source, Experiment], Source] = lambda source, experiment: source,
) -> Plan:
    """Look at the data, settle the experiment, and estimate its cost from a few real steps.

    Args:
        opened: what ``open_data`` was given, to open it again on resume.
        override: applies the settings given on the command line to the recipe's.
        asked: the names of these settings, as ``--encoder.width``.
        copied: gives the source to train from in place of the images themselves (:class:`Copies` of them).

    Raises:
        InputError: the data or the settings cannot be used.
    """
    source = splits.train
    if len(source) < FEWEST_IMAGES:
        raise InputError(
            f"{source.name} has {len(source)} image{'s' * (len(source) != 1)} to train on; at least {FEWEST_IMAGES} "
            f"are needed"
        )
    seen = survey(source, seed=wishes.seed or 0)
    found = _levels(source, seen, wishes)
    chosen, why = _settle(splits, seen, found, wishes, processes, asked)

    rescaled = wishes.experiment is None and chosen.recipe in ("small", "standard")

    def checked(recipe: Experiment) -> Experiment:
        try:
            experiment = override(recipe)
            if rescaled:
                experiment = scaled(experiment, recipe, asked)
            experiment.masking()
        except ValueError as error:
            raise InputError(str(error)) from error
        _refuse(experiment, seen, found, len(source), processes)
        return experiment

    short = checked(chosen)
    splits = replace(splits, train=copied(source, short))
    of_its_own = wishes.experiment is None and chosen.recipe == "small"
    lengthy = checked(_lengthened(chosen, short, asked)) if of_its_own else short
    enough = long_from(short)
    long, planned = wishes.long, lengthy if wishes.long else short
    steps = _steps(planned, wishes, len(source), processes)
    if long is None and steps is not None:
        long = steps >= enough
        if long and lengthy != short:
            planned, steps = lengthy, _steps(lengthy, wishes, len(source), processes)
    experiment, cost = _costed(planned, steps, splits, wishes, processes)
    if long is None:
        long = experiment.training.steps >= enough
        if long and lengthy != short:
            experiment, cost = _costed(lengthy, steps, splits, wishes, processes)
    if long and lengthy != short:
        experiment = experiment if "--ijepa.momentum" in asked else paced(experiment)
        why += "; as for the other objectives" if wishes.long else f"; room for {enough:,} steps"
        why += f", so {_differences(short, experiment)}"
    elif of_its_own and lengthy != short and chosen.method == "ijepa" and _left_open(wishes):
        long_run = paced(replace(lengthy, training=replace(lengthy.training, steps=enough)))
        why += f"; --steps {enough} brings {_differences(short, long_run)}, and most small sets learned more with it"
    on_gpus = processes.world > 1 and processes.device.type == "cuda"
    if on_gpus and experiment.recipe == "small" and experiment.training.record:
        why += "; on one GPU a step of so small a network is recorded and launched at once, on several it is not, and "
        why += "one may be faster"
    return Plan(
        experiment=experiment, facts=facts(experiment, splits, opened, seen, found, why, cost, processes), long=long
    )


def _left_open(wishes: Wishes) -> bool:
    """Whether the length was left to the plan."""
    return wishes.minutes is wishes.epochs is wishes.steps is wishes.flops is None


def _levels(source: Source, seen: Survey, wishes: Wishes) -> Levels:
    """How bright the images are, at the size that the recipe is fitted to.

    Raises:
        InputError: none can be read, or there is nothing in them to be told apart.
    """
    if wishes.experiment is None:
        channels, size = wishes.channels or seen.channels, wishes.image_size or seen.typical
    else:
        channels, size = wishes.experiment.preprocessing.channels, wishes.experiment.preprocessing.size
    if min(size) > 256:  # a smaller version has the same mean and nearly the same spread, and is read faster
        size = (256 * size[0] // min(size), 256 * size[1] // min(size))
    found = levels(source, size, channels, seed=wishes.seed or 0)
    if len(found.flat) + len(found.bad) == found.looked_at and set(found.std) == {1.0}:
        raise InputError(
            f"each of the {len(found.flat):,} images looked at in {source.name} holds one and the same value all over "
            f"(for example {found.flat[0]}), from which nothing can be learned: see how they were saved"
        )
    return found


def _settle(
    splits: Splits, seen: Survey, found: Levels, wishes: Wishes, processes: Processes, asked: Collection[str] = ()
) -> tuple[Experiment, str]:
    if wishes.experiment is not None:
        saved = _begun(_with_objective(wishes.experiment, wishes.objective).on(processes), wishes)
        why = f"taken from a saved experiment.json{_unlike(saved, seen)}"
        if saved.training.precision == "float32" or "--training.precision" in asked or _fast_bfloat16(processes.device):
            return saved, why
        return _in_float32(saved), f"{why}; in float32, for its bf16 is slow here (--training.precision bf16 keeps it)"
    experiment, why = choose(
        wishes.recipe,
        method=wishes.objective or "ijepa",
        size=seen.typical,
        mean=found.mean,
        std=found.std,
        images=len(splits.train),
        device=processes.device.type,
        wanted=wishes.image_size,
        median=seen.median,
    )
    if not _fast_bfloat16(processes.device):
        experiment = _in_float32(experiment)
    return _begun(experiment, wishes), why


def _unlike(saved: Experiment, seen: Survey) -> str:
    """What these images are turned into for an experiment that was settled for others."""
    encoder, told = saved.encoder, []
    if encoder.signal != seen.median:
        sizes = ("x".join(map(str, size)) for size in (encoder.signal, seen.median))
        told.append("resized to {} px from about {}".format(*sizes))
    if encoder.channels != seen.channels:
        told.append(f"made {encoder.channels} channels of {seen.channels}")
    return f" (images are {', '.join(told)}; mean and spread are the experiment's)" if told else ""


def _lengthened(chosen: Experiment, short: Experiment, asked: Collection[str]) -> Experiment:
    """The recipe for long runs, with the chosen one's encoder where the command line settles a part of its shape.

    ``short`` is the chosen one with all that the command line settles.
    """
    long = lengthened(chosen, short)
    own = {"--encoder.width", "--encoder.depth", "--encoder.heads"} & set(asked)
    return replace(long, encoder=chosen.encoder) if own else long


def _differences(short: Experiment, long: Experiment) -> str:
    """What a long run has otherwise, and the command line did not settle."""
    different = {
        "a wider encoder": short.encoder.width < long.encoder.width,
        "targets standardised per feature": short.ijepa.target_norm != long.ijepa.target_norm,
        "Muon for the blocks' matrices": short.optimizer.matrices != long.optimizer.matrices,
        "a slower teacher": short.ijepa.momentum[0] < long.ijepa.momentum[0],
    }
    *most, last = [name for name, is_so in different.items() if is_so] or ["other settings"]
    return f"{', '.join(most)} and {last}" if most else last


def _with_objective(experiment: Experiment, objective: Method | None) -> Experiment:
    if objective is None or objective == experiment.method:
        return experiment
    if experiment.method != "ijepa":
        raise InputError(
            f"the saved experiment is of {experiment.method}; an ijepa one can be turned to --objective {objective}"
        )
    refuse_published(experiment.recipe, objective)
    return baseline(experiment, objective)


def _begun(experiment: Experiment, wishes: Wishes) -> Experiment:
    """The experiment with the seed and the number of workers that were asked for."""
    seed = experiment.seed if wishes.seed is None else wishes.seed
    workers = experiment.training.workers if wishes.workers is None else wishes.workers
    return replace(experiment, seed=seed, training=replace(experiment.training, workers=workers))


def _in_float32(experiment: Experiment) -> Experiment:
    return replace(experiment, training=replace(experiment.training, precision="float32"))


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrices are multiplied faster than float32 ones: by a GPU that has it in hardware (NVIDIA's
    from compute capability 8.0 on; others, as a T4, emulate it slowly and say nothing), by a CPU that does so in a
    trial; it is by far, or by far not."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            torch.mm(a, a)
            times.append(time.perf_counter() - begin)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _refuse(experiment: Experiment, seen: Survey, found: Levels, images: int, processes: Processes) -> None:
    training, patch = experiment.training, experiment.encoder.patch
    for look in (seen, found):  # at the headers of some images, and at the pixels of some of those
        if len(look.bad) > training.bad_images * look.looked_at:
            raise InputError(
                f"{len(look.bad)} of {look.looked_at} images looked at cannot be read, more than "
                f"{100 * training.bad_images:g}%: for example {look.bad[0]}. Mend or remove them, or allow more with "
                "--bad-images"
            )
    if not experiment.encoder.depth:
        raise InputError("--encoder.depth 0 leaves nothing to train but the patches' embedding: ask for 1 or more")
    if not experiment.predictor.depth and experiment.method != "denoising":
        raise InputError(
            f"--predictor.depth 0 predicts without a look at what is seen, from which {experiment.method}'s encoder "
            f"learns nothing: ask for 1 or more (denoising alone goes without)"
        )
    if experiment.encoder.class_token or experiment.encoder.positions == "learned":
        raise InputError(
            "--encoder.class-token and --encoder.positions learned are what imported encoders may have: a run learns "
            "no table of positions, and no objective trains a class token. Leave them out"
        )
    if min(seen.median) < min(patch):
        raise InputError(
            f"a typical image is {seen.median[0]}x{seen.median[1]} px (height x width), smaller than a patch of "
            f"{patch[0]}x{patch[1]} px: give larger images, or choose a smaller --encoder.patch"
        )
    if training.batch > images:
        raise InputError(
            f"a batch of {training.batch} needs as many images and there are {images}; "
            f"use --training.batch {images} or fewer"
        )
    if training.replicas > 1 and not processes.one_cpu:
        raise InputError(
            f"--training.replicas {training.replicas} is for one process on a CPU; here are {processes.world} on "
            f"{processes.device}: leave it out"
        )
    refuse_uneven(training, processes)


def _costed(
    experiment: Experiment, steps: int | None, splits: Splits, wishes: Wishes, processes: Processes
) -> tuple[Experiment, Cost]:
    """The experiment of so many steps, or of as many as the time asked for has room for, in the fastest way, and what
    a step costs."""
    look = 1.0
    if wishes.minutes is not None:
        # It decides on the steps and is worth a longer look: 0.2% of it, from 4 seconds (or a tenth of it) to 20.
        look = min(20.0, max(min(4.0, 6 * wishes.minutes), 0.12 * wishes.minutes))
    training, cost = measure(
        experiment, splits, processes, look=look, steps=steps, settle_workers=wishes.workers is None
    )
    if steps is None:
        assert wishes.minutes is not None
        steps = max(1, int(wishes.minutes * 60 * (1 - BESIDES) / cost.step))
    same = wishes.experiment is not None and steps == training.steps
    watch = training.watch_every if same else max(1 if wishes.flops else 50, steps // 12)
    training = replace(training, steps=steps, watch_every=wishes.watch_every or watch)
    return replace(experiment, training=training), cost


def _steps(experiment: Experiment, wishes: Wishes, images: int, processes: Processes) -> int | None:
    """The number of steps that was asked for; None where it hangs on how long one takes."""
    batch = experiment.training.batch
    if wishes.minutes is not None:
        return None
    if wishes.epochs is not None:
        steps = round(wishes.epochs * images / batch)
    elif wishes.steps is not None:
        steps = wishes.steps
    elif wishes.flops is not None:
        each = flops(experiment.objective(), experiment, drawn_masks(experiment, processes))["step"] * batch
        steps = int(wishes.flops / each)
        if not steps:
            raise InputError(f"--flops {wishes.flops:g} is less than one step of {experiment.method} ({each:.3g})")
    elif wishes.experiment is not None:
        steps = experiment.training.steps
    else:
        steps = min(max(3000, round(100 * images / batch)), 30_000)
    return max(1, steps)

"""What a step of a run costs: its time, from real steps with weights that are thrown away, and its operations."""

import itertools
import math
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from openjepa.cores import cores
from openjepa.data.base import Splits
from openjepa.data.loader import Batch, training_batches
from openjepa.errors import InputError
from openjepa.experiment import Experiment
from openjepa.masks import Masks
from openjepa.objectives.base import Objective
from openjepa.training.distributed import Processes
from openjepa.training.metrics import peak_memory
from openjepa.training.optimizer import build_optimizers
from openjepa.training.step import Step, TrainingConfig, cpu_threads

# What a run does besides training (watching, saving, the last evaluation's start), as a share of its time.
BESIDES = 0.05
# Images of a replica: each has gradients of all weights, and few images do not pay for them.
_LEAST_SHARE = 8
# What loader processes can do, over what steps take: they do not all get on alike. More of them take memory.
_SPARE, _MOST_WORKERS = 1.25, 16
# Batches to try steps on, and steps before a way is timed: a GPU's are recorded from the fourth on (recording.py).
_MOST_HELD = 8
_FIRST = {"cpu": 3, "cuda": 5}
# Seconds of these first steps from which other ways to compute are not tried.
_SLOW = 8.0
# Steps of which the mean says enough.
_MOST_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was measured.

    Attributes:
        step: seconds of a step, with its share of the loader's work.
        waits: the share of them for which the loader is to blame, from 0 to 1.
        batch: seconds in which one loader process makes a batch.
        memory: bytes at the peak.
    """

    step: float
    waits: float
    batch: float
    memory: int


def measure(
    experiment: Experiment,
    splits: Splits,
    processes: Processes,
    *,
    look: float,
    steps: int | None,
    settle_workers: bool,
) -> tuple[TrainingConfig, Cost]:
    """The training settings with the fastest replicas and threads and with enough loader processes, and what a step
    costs then, from real steps on real batches with weights that are thrown away.

    It takes ``look`` seconds, or a few steps in each way to compute, whichever is longer, and a few batches. Of a run
    of few ``steps`` (None: not known yet) each way is tried for no more than these, and one that takes less than the
    look is not tried with loader processes, whose share of the time its estimate then leaves out.

    Raises:
        InputError: a step does not fit into the memory of the GPU, or its numbers are not finite.
        LoaderError: a worker was killed.
    """
    if processes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(processes.device)
    given = experiment.training
    most = _MOST_STEPS if steps is None else min(_MOST_STEPS, steps)
    held, loading = _load(experiment, splits, processes)
    with closing(_trial(experiment, processes, itertools.cycle(held))) as trial:
        next(trial)
        begin = time.perf_counter()
        with cpu_threads(given.threads_each):
            for _ in range(_FIRST[processes.device.type]):
                trial.send(given)
        slow = time.perf_counter() - begin > (_SLOW if steps is None else min(2 * look, _SLOW))
        memory = _memory(processes.device)
        ways = [given] if slow else _ways(given, processes)
        rounds = 2 if len(ways) > 1 else 1
        timed = dict.fromkeys(ways, math.inf)
        for way in ways * rounds:
            with cpu_threads(way.threads_each):
                timed[way] = min(timed[way], _seconds(trial, way, look / len(ways) / rounds, most))
    fastest = min(timed.values())
    # Of what makes no difference the fewest, which leaves the other cores to the loader and to whoever else is there.
    chosen = next(way for way in ways if timed[way] < 1.05 * fastest)
    if processes.device.type == "cuda":  # the run itself, or another process, is to have the memory
        torch.cuda.empty_cache()
    step = timed[chosen]
    if settle_workers:
        enough = math.ceil(_SPARE * loading / step)
        chosen = replace(chosen, workers=max(1, min(enough, cores() - 1, _MOST_WORKERS)))
    brief = steps is not None and steps * step < look
    if not chosen.workers:
        seconds = step + loading
    elif loading > step * chosen.workers or slow or brief or processes.device.type == "cuda":
        seconds = max(step, loading / chosen.workers)
    else:  # a loader that keeps up, on the cores that compute: how much it takes of them is seen
        with (
            closing(_batches(experiment, splits, processes, chosen.workers)) as live,
            closing(_trial(experiment, processes, live)) as trial,
            cpu_threads(chosen.threads_each),
        ):
            next(trial)
            seconds = _seconds(trial, chosen, look, most)
    return chosen, Cost(step=seconds, waits=max(0.0, 1 - step / seconds), batch=loading, memory=memory)


def _memory(device: torch.device) -> int:
    """Bytes at the peak; of a GPU those that PyTorch has reserved, in which a recorded step keeps room of its own."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory(device)


def _load(experiment: Experiment, splits: Splits, processes: Processes) -> tuple[list[Batch], float]:
    """A few batches, and the mean seconds in which one loader process makes one."""
    held: list[Batch] = []
    with cpu_threads(1), closing(_batches(experiment, splits, processes, 0)) as batches:
        held.append(next(batches))  # to get started
        begin = time.perf_counter()
        while len(held) < 2 or (len(held) < _MOST_HELD and time.perf_counter() - begin < 1):
            held.append(next(batches))
        return held, (time.perf_counter() - begin) / (len(held) - 1)


def _batches(
    experiment: Experiment, splits: Splits, processes: Processes, workers: int
) -> Generator[Batch, None, None]:
    """A run's batches, this process' share of each."""
    return training_batches(
        splits.train,
        experiment.preprocessing,
        experiment.augmentation,
        experiment.masking(),
        batch=experiment.training.batch // processes.world,
        seed=experiment.seed,
        workers=workers,
        pieces=experiment.training.accumulate,
    )


def _ways(training: TrainingConfig, processes: Processes) -> list[TrainingConfig]:
    """Replicas and threads worth trying, the fewest first: all of one kind, so that there are not too many."""
    if training.replicas or training.threads or not processes.one_cpu:
        return [training]
    most = torch.get_num_threads()
    piece = training.batch // training.accumulate
    ways = []
    for count in [count for count in (1, 2, 4, 8, 16, 32) if count < most] + [most]:
        if count > 1 and piece % count == 0 and piece >= _LEAST_SHARE * count and not training.compile:
            ways.append(replace(training, replicas=count, threads=1))
        ways.append(replace(training, replicas=1, threads=count))
    return ways


def _seconds(trial: Generator[None, TrainingConfig, None], way: TrainingConfig, look: float, most: int) -> float:
    """Mean seconds of a step, over ``look`` seconds or ``most`` steps, and 3 at least."""
    for _ in range(2):
        trial.send(way)
    begin, count = time.perf_counter(), 0
    while count < 3 or (count < most and time.perf_counter() - begin < look):
        trial.send(way)
        count += 1
    return (time.perf_counter() - begin) / count


def _trial(
    experiment: Experiment, processes: Processes, batches: Iterable[Batch]
) -> Generator[None, TrainingConfig, None]:
    """Takes a real step in the way that it is sent, with new weights for each new way, on one batch after the other."""
    way = yield
    alone = Processes(0, 1, processes.device)
    share = experiment.training.batch // processes.world
    taken: TrainingConfig | None = None
    step: Step | None = None
    for number, batch in enumerate(batches):
        try:
            if step is None or way != taken:
                step, taken = None, way  # its memory first
                own = replace(way, compile=False, steps=10**6, batch=share, record=way.record and processes.world == 1)
                step = _step(experiment, own, alone)
            x = experiment.preprocessing.normalise(batch.images.to(processes.device))
            step(x, [masks.to(processes.device) for masks in batch.masks], number)
        except FloatingPointError as error:
            raise InputError(
                f"trial step {number} gave numbers that are not finite ({error}): lower --schedule.lr, or look at "
                f"the images"
            ) from error
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"a step of {share} images takes more memory than {processes.device} has "
                f"({str(error).partition('. ')[0]}): cut it into micro-batches with --training.accumulate, keep less "
                f"with --training.recompute, or take a smaller --training.batch"
            ) from error
        way = yield


def _step(experiment: Experiment, training: TrainingConfig, processes: Processes) -> Step:
    objective = experiment.objective().to(processes.device).train()
    return Step(
        objective, schedule=experiment.schedule, optimizer=experiment.optimizer, training=training, processes=processes
    )


def drawn_masks(experiment: Experiment, processes: Processes) -> Masks:
    """The masks of a micro-batch, as many together as a process draws."""
    training = experiment.training
    return experiment.masking()(np.arange(training.batch // (processes.world * training.accumulate)), 0)


def flops(objective: Objective, experiment: Experiment, masks: Masks) -> dict[str, int]:
    """Floating-point operations per image, counted by running the objective on the meta device.

    ``forward`` is the encoder alone on a whole image; ``step`` a training step's forward and backward passes, with the
    ``masks`` of some images, and an image's share of what the optimisers multiply (Muon does, AdamW does not), once,
    however many processes do the same, and as in bfloat16, whatever the precision (in float32 Muon takes less).
    """
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of PyTorch's own start

    shadow = objective.to("meta")
    images = len(masks.context) // (experiment.masks.contexts if experiment.method == "ijepa" else 1)
    x = torch.empty(images, experiment.encoder.channels, *experiment.encoder.signal, device="meta")
    masks = masks.to("meta")
    with FlopCounterMode(display=False) as whole:
        shadow(x, masks).loss.backward()
    with FlopCounterMode(display=False) as update:
        for optimizer in build_optimizers(shadow, experiment.optimizer, fused=False):
            optimizer.step()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        shadow.representation(x)
    step = whole.get_total_flops() // images + update.get_total_flops() // experiment.training.batch
    return {"forward": forward.get_total_flops() // images, "step": step}

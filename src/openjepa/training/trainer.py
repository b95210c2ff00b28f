"""The training loop: any objective, any device, one process or many.

Nothing here is random: what a step sees is a function of its number, so a run that stops and goes on is the same run.
"""

import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from openjepa.data.augmentation import Preprocessing
from openjepa.data.loader import Batch
from openjepa.diagnosis import UNTRAINED, Lookout
from openjepa.errors import InputError
from openjepa.masking import Masks
from openjepa.objectives.base import Objective
from openjepa.training import checkpoint as checkpoints
from openjepa.training.distributed import Processes, parallelise, restore_state, whole, whole_state
from openjepa.training.energy import EnergyMeter
from openjepa.training.metrics import Meter, MetricsLog, peak_memory
from openjepa.training.optimizer import OptimizerConfig, build_optimizer, set_schedule
from openjepa.training.recording import Recording
from openjepa.training.replicas import Replicas
from openjepa.training.schedules import ScheduleConfig, progress
from openjepa.transformer import Stack


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why, what was kept and what to do."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run.
        batch: images of a step, over all processes and micro-batches.
        accumulate: micro-batches a step; the gradient equals the large batch's.
        precision: ``bf16`` (autocast) or ``float32``.
        compile: compile the objective with torch.compile.
        record: on one GPU, with masks of one size: record a step's kernels once and launch them together
            (``recording.py``), as small networks need to keep a GPU busy; the numbers are the same.
        recompute: recompute activations in the backward pass, to save memory.
        shard: FSDP2 instead of DDP, with several processes.
        workers: loader processes; they do not change a run's numbers.
        replicas: threads on a CPU that share a batch, each working through a part of it as DDP's processes do
            (``replicas.py``); 0 is one, the whole batch.
        threads: of PyTorch on a CPU, inside each of the replicas; 0 leaves them to PyTorch, or is one where there are
            replicas. ``pretrain`` measures which replicas and threads are the fastest and settles them: others show in
            the last bits of a run's numbers.
        log_every: steps between rows of metrics.
        watch_every: steps between looks at the representation (RankMe, LiDAR, k-NN and more).
        save_every: steps between checkpoints.
        keep: checkpoints kept.
        keep_best: export the encoder of the look that a score without labels likes best, not the last one.
        bad_images: share of the images (0 to 1) that may be unreadable before the run stops.
    """

    steps: int = 1000
    batch: int = 64
    accumulate: int = 1
    precision: Literal["bf16", "float32"] = "bf16"
    compile: bool = False
    record: bool = True
    recompute: bool = False
    shard: bool = False
    workers: int = 1
    replicas: int = 0
    threads: int = 0
    log_every: int = 10
    watch_every: int = 200
    save_every: int = 500
    keep: int = 2
    keep_best: bool = False
    bad_images: float = 0.01

    @property
    def threads_each(self) -> int:
        """PyTorch's threads inside each replica; 0 leaves them to PyTorch."""
        return self.threads or (1 if self.replicas > 1 else 0)

    @property
    def threads_together(self) -> int:
        """Threads that compute, over all replicas; 0 leaves them to PyTorch."""
        return max(1, self.replicas) * self.threads_each

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "watch_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "replicas", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative, got {getattr(self, name)}")
        if not 0 <= self.bad_images <= 1:
            raise ValueError(f"bad_images is a share from 0 to 1, got {self.bad_images}")
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} cannot be cut into {self.accumulate} equal micro-batches")
        if self.replicas > 1 and (self.batch // self.accumulate) % self.replicas:
            raise ValueError(
                f"{self.batch // self.accumulate} images cannot be shared evenly by {self.replicas} replicas"
            )
        if self.replicas > 1 and self.compile:
            raise ValueError("replicas and compile do not go together: a compiled objective has threads of its own")


class Step:
    """One optimiser step, as published: schedules advance, forward, backward, AdamW, and last the EMA.

    Args:
        objective: holds every weight.
        call: the module to call in its place (DDP's wrapper, or the objective itself).

    Raises:
        InputError: replicas beside several processes, which do the same.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        schedule: ScheduleConfig,
        optimizer: OptimizerConfig,
        training: TrainingConfig,
        processes: Processes,
        call: nn.Module | None = None,
    ) -> None:
        self.objective, self.schedule, self.training, self.processes = objective, schedule, training, processes
        self.call = call or objective
        objective.add_up = processes.add_up
        if training.replicas > 1 and not processes.one_cpu:
            raise InputError(
                f"training.replicas is for one process on a CPU; here are {processes.world} on {processes.device}"
            )
        self.replicas = Replicas(objective, max(1, training.replicas))
        self.clip = optimizer.clip
        self.optimizer = build_optimizer(objective, optimizer)
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.norm = torch.zeros(())
        self._names: list[str] = []
        self.recording = Recording(self.parameters) if training.record and processes.one_gpu else None

    def __call__(self, x: torch.Tensor, masks: Masks, step: int) -> dict[str, float]:
        """Take step number ``step`` (from 0) on normalised images "B C *S"; returns the numbers of the step.

        Raises:
            FloatingPointError: loss or gradient is not finite; weights, moments and EMA are as before the step.
        """
        scheduled = set_schedule(self.optimizer, self.schedule, step, self.training.steps)
        along = progress(self.schedule, step, self.training.steps)
        row = self.backward(x, masks)
        if self.processes.any(not all(math.isfinite(row[name]) for name in ("loss", "grad_norm"))):
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError(f"loss {row['loss']}, gradient norm {row['grad_norm']}")
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, self.norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.processes.add_up(self.objective.gathered)
        self.objective.after_step(along)
        return row | scheduled | self.objective.settings(along)

    def backward(self, x: torch.Tensor, masks: Masks) -> dict[str, float]:
        """Leave the gradient of the mean loss over replicas and micro-batches; returns loss, metrics and its norm."""
        work = self._gradients
        numbers = work(x, masks) if self.recording is None else self.recording(work, x, masks)
        return dict(zip(self._names, numbers.tolist(), strict=True))  # the one wait for a GPU in a step

    def _gradients(self, x: torch.Tensor, masks: Masks) -> torch.Tensor:
        """The work of :meth:`backward`; its numbers in the order of their names."""
        pieces = self.training.accumulate
        count = pieces * max(1, self.training.replicas)
        sets = len(masks.context) // len(x)
        bounds = [len(x) * i // count for i in range(count + 1)]
        parts = [(x[a:b], masks.rows(a * sets, b * sets)) for a, b in itertools.pairwise(bounds)]

        def share(replica: Objective, place: int) -> dict[str, torch.Tensor]:
            return self._share(replica, parts[place * pieces : (place + 1) * pieces], len(x))

        shares = self.replicas(share)
        self.replicas.gather()
        mean = torch.stack([torch.stack(list(totals.values())).double() for totals in shares]).sum(0)
        self.processes.add_up([mean])
        self.norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self._names = [*shares[0], "grad_norm"]
        return torch.cat([mean / self.processes.world, whole(self.norm).double()[None]])

    def _share(
        self, replica: Objective, parts: list[tuple[torch.Tensor, Masks]], images: int
    ) -> dict[str, torch.Tensor]:
        """A replica's part of :meth:`backward`, of a step of so many images."""
        call = self.call if replica is self.objective else replica
        totals: dict[str, torch.Tensor] = {}
        if len(parts) > 1:
            with self._autocast(parts[0][0]):
                replica.survey(parts)
        for part in parts:
            weight, last = len(part[0]) / images, part is parts[-1]
            sync = last or not hasattr(call, "no_sync")
            with nullcontext() if sync else call.no_sync():  # type: ignore[operator]
                with self._autocast(part[0]):
                    output = call(*part)
                (output.loss * weight).backward()
            for name, value in {"loss": output.loss, **output.metrics}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + weight * value.detach()
        return totals

    def _autocast(self, x: torch.Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.training.precision == "bf16")


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """PyTorch works with ``count`` threads inside, and as before afterwards; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Interruption:
    """Ctrl-C and SIGTERM ask the loop to save and leave; a second one exits at once.

    Two within ``_SAME`` seconds are one: ``timeout`` and terminals send to the process and to its group.
    """

    _SAME = 0.5

    def __init__(self) -> None:
        self.asked: str | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked is None:
            self.asked, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > self._SAME:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class Trainer:
    """Trains an objective into a run folder.

    Args:
        objective: on the CPU; it is moved to the processes' device.
        batches: makes the endless stream of batches from a given step on.
        reference: names an image by its number, for messages.
        images: how many images the data set has.
        watch: measures the representation (``rankme``, ``knn``) from time to time; every process calls it.
        saved: called by the first process after a checkpoint was written, with the objective's weights in it.
        experiment: the contents of ``experiment.json``, for what the lookout recommends.

    Attributes:
        best: steps done at the look that the score without labels likes best, with ``keep_best``.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        batches: Callable[[int], Iterable[Batch]],
        preprocessing: Preprocessing,
        schedule: ScheduleConfig,
        optimizer: OptimizerConfig,
        training: TrainingConfig,
        processes: Processes,
        run: Path,
        reference: Callable[[int], str],
        images: int,
        watch: Callable[[], dict[str, float]],
        saved: Callable[[dict[str, Any]], None] = lambda weights: None,
        experiment: dict[str, Any] | None = None,
    ) -> None:
        self.objective = objective.to(processes.device)
        self.training, self.processes, self.run = training, processes, run
        self.batches, self.preprocessing, self.reference, self.images = batches, preprocessing, reference, images
        self.watch, self.saved, self.experiment = watch, saved, experiment
        if training.recompute:
            for part in objective.modules():
                if isinstance(part, Stack):
                    part.recompute = True
        # The untrained encoder is what every later look is compared with; its measures stand in the first row. They are
        # taken before the weights are sharded: FSDP2 wants the whole objective to be called before a part of it is.
        taken = max(checkpoints.steps(run / "checkpoints"), default=0)
        self._untrained = {} if taken else {UNTRAINED + name: value for name, value in self.watch().items()}
        call = parallelise(objective, processes, shard=training.shard)
        if training.compile:
            call.compile()
        self.step = Step(
            objective, schedule=schedule, optimizer=optimizer, training=training, processes=processes, call=call
        )
        self.done = 0
        self.seconds = 0.0
        self.energy, self.joules = EnergyMeter(processes.device), 0.0
        self.best: int | None = None
        self.bad: dict[str, str] = {}

    def resume(self) -> list[str]:
        """Go on from the newest whole checkpoint; returns a sentence for every damaged one that was passed over."""
        found, damaged = checkpoints.load_newest(self.run / "checkpoints")
        restore_state(self.objective, self.step.optimizer, found.state)
        self.done, self.seconds = found.step, found.progress["seconds"]
        self.joules = found.progress.get("joules", 0.0)
        self._untrained = found.progress.get("untrained", self._untrained)
        self.bad, self.best = found.progress["bad_images"], found.progress.get("best")
        return damaged

    def save(self) -> None:
        """Write a checkpoint; every process takes part, the first one writes."""
        state = whole_state(self.objective, self.step.optimizer)
        if self.processes.first:
            facts = {"seconds": self.seconds, "bad_images": self.bad, "best": self.best, **self._energy()}
            facts["untrained"] = self._untrained
            found = checkpoints.Checkpoint(self.done, state, facts)
            checkpoints.save(self.run / "checkpoints", found, keep=self.training.keep)
            self.saved(state["objective"])
        self.processes.wait()

    def train(self, *, until: int | None = None, show: bool = True) -> str | None:
        """Train to the end, or to step ``until``; returns the name of the signal that stopped it early, or None.

        Raises:
            TrainingStopped: a loss or gradient is not finite; the weights before it are saved.
            InputError: too many unreadable images.
        """
        last = min(self.training.steps, until or self.training.steps)
        log = MetricsLog(self.run / "metrics.jsonl", start=self.done) if self.processes.first else None
        try:
            with (
                cpu_threads(self.training.threads_each),
                Interruption() as interruption,
                Meter(self.training.steps, self.done, show=show and bool(log)) as meter,
            ):
                lookout = Lookout(self.experiment, log.before if log else ())
                return self._loop(last, log, meter, lookout, interruption)
        finally:
            if log:
                log.close()

    def _loop(
        self, last: int, log: MetricsLog | None, meter: Meter, lookout: Lookout, interruption: Interruption
    ) -> str | None:
        self.objective.train()
        stream = iter(self.batches(self.done))
        if not self.done:  # whatever happens from here on, the run can go on
            self.save()
        saved = self.done
        window = _Window()
        before = {} if self.done else self._untrained
        while self.done < last:
            batch, x, masks = self._next(stream, window)
            try:
                row = self.step(x, masks, self.done)
            except FloatingPointError as error:
                raise self._refused(batch, error) from error
            self.done += 1
            self.seconds += window.lap(len(x) * self.processes.world)
            if self.done == 1:
                row |= before
            looked = self.done % self.training.watch_every == 0 or self.done == self.training.steps
            if looked:
                row |= self._look(window)
            if log and (self.done % self.training.log_every == 0 or looked or self.done in (1, last)):
                facts = {"step": self.done - 1, "epoch": self.done * self.training.batch / self.images, **row}
                facts |= window.rates() | {"seconds": self.seconds, "peak_memory": peak_memory(x.device)}
                facts |= self._energy()
                log.write(facts)
                meter.advance(facts, done=self.done)
                meter.say(lookout.note(facts))
            if looked and self._is_best(lookout):
                self.save()
                saved = self.done
                self.seconds += window.pause()
            if self.processes.any(interruption.asked is not None):
                break
            if self.done % self.training.save_every == 0 and saved != self.done:
                self.save()
                saved = self.done
                self.seconds += window.pause()
        if saved != self.done:
            self.save()
        return interruption.asked

    def _look(self, window: "_Window") -> dict[str, float]:
        with cpu_threads(self.training.threads_together):
            found = self.watch()
        self.objective.train()
        self.seconds += window.pause()
        return found

    def _is_best(self, lookout: Lookout) -> bool:
        """Whether this look is the best so far and its checkpoint is wanted; the first process decides."""
        if not self.training.keep_best:
            return False
        chosen = lookout.choice if self.processes.first else None
        better = self.processes.any(chosen is not None and chosen.step == self.done)
        self.best = self.done if better else self.best
        return better

    def _energy(self) -> dict[str, float]:
        """The machine's energy since the run began, where it counts it."""
        spent = self.energy.joules()
        return {} if spent is None else {"joules": self.joules + spent}

    def _next(self, stream: Any, window: "_Window") -> tuple[Batch, torch.Tensor, Masks]:
        batch: Batch = next(stream)
        window.waited()
        self._note_bad(batch)
        device = self.processes.device
        images = batch.images.to(device, non_blocking=True)
        assert batch.masks is not None
        return batch, self.preprocessing.normalise(images), batch.masks.to(device, non_blocking=True)

    def _note_bad(self, batch: Batch) -> None:
        fresh = [bad for bad in batch.bad if bad.reference not in self.bad]
        if fresh:
            with (self.run / "bad_images.jsonl").open("a") as file:
                for bad in fresh:
                    file.write(json.dumps({"reference": bad.reference, "reason": bad.reason}) + "\n")
            self.bad |= {bad.reference: bad.reason for bad in fresh}
        allowed = self.training.bad_images * self.images
        if self.processes.any(len(self.bad) > allowed):
            self.save()
            example, reason = next(iter(self.bad.items()), ("another process' image", "see bad_images.jsonl"))
            raise InputError(
                f"{len(self.bad)} of {self.images} images could not be read, more than "
                f"{100 * self.training.bad_images:g}%: for example {example} ({reason}). They are listed in "
                f"{self.run / 'bad_images.jsonl'}. Mend or remove them, or allow more with --training.bad-images; "
                f"the run so far is kept (step {self.done})."
            )

    def _refused(self, batch: Batch, error: FloatingPointError) -> TrainingStopped:
        named = [self.reference(int(sample)) for sample in batch.samples]
        path = self.run / f"nonfinite-step-{self.done}.json"
        path.write_text(json.dumps({"step": self.done, "error": str(error), "images": named}, indent=1))
        self.save()
        return TrainingStopped(
            f"step {self.done} gave a number that is not finite ({error}), and the weights were left as they were. Its "
            f"batch of {len(named)} images begins with {', '.join(named[:3])}; {path} lists them all. The weights "
            f"before it are saved. Look at these images; a lower --schedule.lr, --optimizer.clip 1.0 or "
            f"--training.precision float32 often helps, in a new run."
        )


class _Window:
    """Rates since the last logged row."""

    def __init__(self) -> None:
        self._mark = self._lap = time.perf_counter()
        self._images, self._wait, self._time = 0, 0.0, 0.0

    def waited(self) -> None:
        now = time.perf_counter()
        self._wait += now - self._mark
        self._mark = now

    def lap(self, images: int) -> float:
        now = time.perf_counter()
        spent, self._lap, self._mark = now - self._lap, now, now
        self._images += images
        self._time += spent
        return spent

    def pause(self) -> float:
        """Leave out the time since the last lap from the rates; returns it."""
        now = time.perf_counter()
        spent, self._lap, self._mark = now - self._lap, now, now
        return spent

    def rates(self) -> dict[str, float]:
        found = {"images_per_s": self._images / max(self._time, 1e-9), "data_wait": self._wait / max(self._time, 1e-9)}
        self._images, self._wait, self._time = 0, 0.0, 0.0
        return found

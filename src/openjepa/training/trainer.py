"""The training loop: any objective, any device, one process or many.

Nothing here is random: what a step sees is a function of its number, so a run that stops and goes on is the same run.
"""

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from openjepa.data.augmentation import Preprocessing
from openjepa.data.loader import Batch, LoaderError
from openjepa.diagnosis.findings import Lookout
from openjepa.diagnosis.looks import UNTRAINED
from openjepa.errors import InputError
from openjepa.masks import Masks
from openjepa.objectives.base import Objective
from openjepa.training import checkpoint as checkpoints
from openjepa.training.distributed import Processes, parallelise, restore_state, whole_state
from openjepa.training.energy import EnergyMeter
from openjepa.training.interruption import Interruption
from openjepa.training.metrics import Meter, MetricsLog, peak_memory
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import Step, TrainingConfig, cpu_threads
from openjepa.transformer import Stack


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why, what was kept and what to do."""


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
        self._statistics = preprocessing.statistics(processes.device)
        self.done = 0
        self.seconds = 0.0
        self.energy = EnergyMeter(processes.device)
        # What was used before this part of the run; None where that was not counted, so that the whole is unknown.
        self.joules: float | None = 0.0
        self.best: int | None = None
        # Why images of the run could not be read, and which of them were met since it was begun or resumed.
        self.bad: dict[str, str] = {}
        self._met: set[str] = set()

    def resume(self) -> list[str]:
        """Go on from the newest whole checkpoint; returns a sentence for every damaged one that was passed over.

        Raises:
            InputError: there is none, or the processes do not read the same one.
        """
        found, damaged = checkpoints.load_alike(self.run / "checkpoints", self.processes)
        restore_state(self.objective, self.step.optimizers, found.state)
        self.done, self.seconds = found.step, found.progress["seconds"]
        self.joules = found.progress.get("joules") if found.step else 0.0
        self._untrained = found.progress.get("untrained", self._untrained)
        self.bad, self.best = found.progress["bad_images"], found.progress.get("best")
        return damaged

    def save(self) -> None:
        """Write a checkpoint; every process takes part, the first one writes."""
        state = whole_state(self.objective, self.step.optimizers)
        if self.processes.first:
            facts = {"seconds": self.seconds, "bad_images": self.bad, "best": self.best, **self._energy()}
            facts["untrained"] = self._untrained
            found = checkpoints.Checkpoint(self.done, state, facts)
            checkpoints.save(self.run / "checkpoints", found, keep=self.training.keep)
            self.saved(state["objective"])
        self.processes.wait()

    def train(self, *, until: int | None = None, show: bool = True) -> str | None:
        """Train to the end, or to step ``until``; returns the name of the signal that stopped it early, or None.

        A signal to any of several processes stops them all.

        Raises:
            TrainingStopped: a loss or gradient is not finite, and the weights before it are saved; or a loader process
                was killed.
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
            meter.step(self.done)
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
                meter.show(facts)
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
        return next(filter(None, self.processes.gather(interruption.asked)), None)

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
        """The machine's energy since the run began, where all of it was counted."""
        spent = self.energy.joules()
        return {} if spent is None or self.joules is None else {"joules": self.joules + spent}

    def _next(self, stream: Iterator[Batch], window: "_Window") -> tuple[Batch, torch.Tensor, list[Masks]]:
        try:
            batch = next(stream)
        except Exception as error:
            if self.processes.world > 1:  # the others do not know, and saving takes them all
                raise
            resume = f"openjepa resume {shlex.quote(str(self.run))}"
            try:
                self.save()
                told = f"the run is saved at step {self.done}: {resume}"
            except Exception as lost:  # noqa: BLE001 - the disk, it may be, that took the images as well
                told = f"the run could not be saved either ({lost}): {resume} goes on from its last checkpoint"
            if not isinstance(error, LoaderError | InputError):
                error.add_note(told)
                raise
            kind = InputError if isinstance(error, InputError) else TrainingStopped
            raise kind(f"{error}; {told}") from error
        window.waited()
        self._note_bad(batch)
        device = self.processes.device
        images = batch.images.to(device, non_blocking=True)
        masks = [own.to(device, non_blocking=True) for own in batch.masks]
        return batch, self.preprocessing.normalise(images, self._statistics), masks

    def _note_bad(self, batch: Batch) -> None:
        own = {bad.reference: bad.reason for bad in batch.bad if bad.reference not in self._met}
        if not self.processes.any(bool(own)):
            return
        met = {reference: reason for part in self.processes.gather(own) for reference, reason in part.items()}
        self._met |= met.keys()
        fresh = {reference: reason for reference, reason in met.items() if reference not in self.bad}
        if self.processes.first and fresh:
            with (self.run / "bad_images.jsonl").open("a") as file:
                for reference, reason in fresh.items():
                    file.write(json.dumps({"reference": reference, "reason": reason}) + "\n")
        self.bad |= fresh
        # Of those met since it was resumed: the ones of before may be readable again.
        if len(self._met) > self.training.bad_images * self.images:
            self.save()
            example, reason = next(iter(met.items()))
            raise InputError(
                f"{len(self._met)} of {self.images} images could not be read, more than "
                f"{100 * self.training.bad_images:g}%: for example {example} ({reason}). They are listed in "
                f"{self.run / 'bad_images.jsonl'}, and the run so far is kept (step {self.done}). Put the same files "
                f"back, or allow more: openjepa resume {shlex.quote(str(self.run))} --bad-images SHARE (from 0 to 1)"
            )

    def _refused(self, batch: Batch, error: FloatingPointError) -> TrainingStopped:
        shares = self.processes.gather([self.reference(int(sample)) for sample in batch.samples])
        named = [name for share in shares for name in share]
        path = self.run / f"nonfinite-step-{self.done}.json"
        self.save()  # first: the weights are worth more than the list
        if self.processes.first:
            path.write_text(json.dumps({"step": self.done, "error": str(error), "images": named}, indent=1))
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

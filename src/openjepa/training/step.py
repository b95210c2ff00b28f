"""One optimiser step of any objective: what is set for it, and the step itself."""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.errors import InputError
from openjepa.masks import Masks
from openjepa.objectives.base import Objective
from openjepa.settings import check_settings
from openjepa.training.distributed import Processes, whole
from openjepa.training.optimizer import OptimizerConfig, build_optimizers, part_of, set_schedule
from openjepa.training.recording import Recording
from openjepa.training.replicas import Replicas
from openjepa.training.schedules import ScheduleConfig, progress


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
        check_settings(self)
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


def refuse_uneven(training: TrainingConfig, processes: Processes) -> None:
    """Refuse processes that cannot share a batch evenly.

    Raises:
        InputError: they cannot.
    """
    parts = processes.world * training.accumulate
    if training.batch % parts:
        raise InputError(
            f"a batch of {training.batch} cannot be shared evenly by {processes.world} processes with "
            f"{training.accumulate} micro-batches each: a run needs a --training.batch that is a multiple of {parts}, "
            f"or another number of processes"
        )


class Step:
    """One optimiser step, as published: schedules advance, forward, backward, AdamW (and Muon), and last the EMA.

    Args:
        objective: holds every weight.
        call: the module to call in its place (DDP's wrapper, or the objective itself); not with replicas, which are
            called in its place themselves.

    Raises:
        InputError: replicas beside several processes, which do the same.
        ValueError: replicas, and another module to call.
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
        self.call = objective if call is None else call
        objective.add_up = processes.add_up
        if training.replicas > 1 and not processes.one_cpu:
            raise InputError(
                f"training.replicas is for one process on a CPU; here are {processes.world} on {processes.device}"
            )
        if training.replicas > 1 and self.call is not objective:
            raise ValueError(f"{training.replicas} replicas cannot be called through a {type(call).__name__}")
        # Micro-batches add their gradients up in the weights' own precision, which those of a copy have not.
        copied = training.precision == "bf16" and training.accumulate == 1
        self.replicas = Replicas(objective, max(1, training.replicas), products=torch.bfloat16 if copied else None)
        self.clip = optimizer.clip
        self.optimizers = build_optimizers(objective, optimizer, bf16=training.precision == "bf16")
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.norm = torch.zeros(())
        self._names: list[str] = []
        self.recording = Recording(self.parameters) if training.record and processes.one_gpu else None

    def __call__(self, x: Float[Tensor, "B C *S"], masks: Masks | Sequence[Masks], step: int) -> dict[str, float]:
        """Take step number ``step`` (from 0) on normalised images; returns the numbers of the step.

        ``masks`` are those of each micro-batch, or of all the images.

        Raises:
            FloatingPointError: loss or gradient is not finite; weights, moments, EMA and running statistics are as
                before the step.
        """
        scheduled = set_schedule(self.optimizers, self.schedule, step, self.training.steps)
        along = progress(self.schedule, step, self.training.steps)
        row = self.backward(x, masks)
        if self.processes.any(not all(math.isfinite(row[name]) for name in ("loss", "grad_norm"))):
            self.objective.zero_grad(set_to_none=True)
            for sums in self.objective.gathered:
                sums.zero_()
            raise FloatingPointError(f"loss {row['loss']}, gradient norm {row['grad_norm']}")
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, self.norm)
        self._optimise()
        self.objective.zero_grad(set_to_none=True)
        self.processes.add_up(self.objective.gathered)
        self.objective.after_step(along)
        return row | scheduled | self.objective.settings(along)

    def backward(self, x: Float[Tensor, "B C *S"], masks: Masks | Sequence[Masks]) -> dict[str, float]:
        """Leave the gradient of the mean loss over replicas and micro-batches; returns loss, metrics and its norm."""
        pieces, work = self.training.accumulate, self._gradients
        each = [masks] if isinstance(masks, Masks) else list(masks)
        if len(each) == 1:
            each = [own for _, own in _cut(x, each[0], pieces)]
        if len(each) != pieces:
            raise ValueError(f"masks of {len(each)} micro-batches were given, and a step has {pieces}")
        if self.recording is None:
            numbers = work(x, each)
        else:
            numbers = self.recording(work, x, each)
            self.norm = numbers[-1].float()  # a replay writes its own, wherever a step as it comes has left another
        return dict(zip(self._names, numbers.tolist(), strict=True))  # the one wait for a GPU in a step

    def _optimise(self) -> None:
        """The optimisers' step, of some parameters in each replica's thread."""
        if self.training.replicas <= 1:
            for optimizer in self.optimizers:
                optimizer.step()
            return

        def move(own: list[int]) -> None:
            parameters = {self.parameters[place] for place in own}
            for optimizer in self.optimizers:
                part_of(optimizer, parameters).step()

        self.replicas.divide([parameter.numel() for parameter in self.parameters], move)

    def _gradients(self, x: Tensor, masks: list[Masks]) -> Tensor:
        """The work of :meth:`backward`; its numbers in the order of their names."""
        pieces = zip((x[a:b] for a, b in _bounds(len(x), len(masks))), masks, strict=True)
        parts = [_cut(images, own, max(1, self.training.replicas)) for images, own in pieces]

        def share(replica: Objective, place: int) -> dict[str, Tensor]:
            return self._share(replica, [piece[place] for piece in parts], len(x))

        self.replicas.renew()
        shares = self.replicas(share)
        self.replicas.gather()
        mean = torch.stack([torch.stack(list(totals.values())).double() for totals in shares]).sum(0)
        self.processes.add_up([mean])
        self.norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        self._names = [*shares[0], "grad_norm"]
        return torch.cat([mean / self.processes.world, whole(self.norm).double()[None]])

    def _share(self, replica: Objective, parts: list[tuple[Tensor, Masks]], images: int) -> dict[str, Tensor]:
        """A replica's part of :meth:`backward`, of a step of so many images."""
        call = replica if self.training.replicas > 1 else self.call
        totals: dict[str, Tensor] = {}
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

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.training.precision == "bf16")


def _bounds(images: int, parts: int) -> list[tuple[int, int]]:
    """Where each of the nearly equal parts begins and ends."""
    return list(itertools.pairwise(images * i // parts for i in range(parts + 1)))


def _cut(x: Tensor, masks: Masks, parts: int) -> list[tuple[Tensor, Masks]]:
    """Images with their mask sets, in nearly equal parts."""
    sets = masks.sets(len(x))
    return [(x[a:b], masks.rows(a * sets, b * sets)) for a, b in _bounds(len(x), parts)]


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """PyTorch works with ``count`` threads inside, and as before afterwards; 0 leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""One process or many: what torchrun says, the wrapping of an objective, and the few things processes agree on.

What shards weights and gathers them is imported where it is called: it takes half as long as PyTorch itself.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from openjepa.encoder import Encoder, Predictor
from openjepa.errors import InputError
from openjepa.objectives.base import Objective

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all: its rank, their number, and the device it computes on.

    Attributes:
        patient: a group of all of them, where there are several, whose members wait for each other for a day.
    """

    rank: int
    world: int
    device: torch.device
    patient: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    @property
    def one_cpu(self) -> bool:
        """Whether this is one process alone on a CPU, where replicas do what several processes do elsewhere."""
        return self.world == 1 and self.device.type == "cpu"

    @property
    def one_gpu(self) -> bool:
        """Whether this is one process alone on a GPU."""
        return self.world == 1 and self.device.type == "cuda"

    @property
    def first_here(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.world == 1 or int(os.environ.get("LOCAL_RANK", self.rank)) == 0

    def any(self, flag: bool) -> bool:
        """Whether any process raised ``flag``."""
        return bool(self.total(float(flag)))

    def total(self, number: float) -> float:
        """The sum of a number over the processes."""
        if self.world == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(value)
        return value.item()

    def gather(self, found: T) -> list[T]:
        """What every process brings, in their order; anything that can be pickled."""
        if self.world == 1:
            return [found]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, found)
        return everyone

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def wait(self, *, patiently: bool = False) -> None:
        """Wait for the others; ``patiently`` also where one lists a million files or fetches a data set meanwhile,
        which is longer than a group waits by itself."""
        if self.world > 1:
            dist.barrier(self.patient if patiently else None)


def join(device: str | None = None) -> Processes:
    """Join the processes that torchrun started, or be the only one; the device is CUDA's where there is one.

    Raises:
        InputError: the device asked for does not exist here, or is of a kind that is not supported.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(kind)
    except RuntimeError as error:
        raise InputError(f"unknown device {kind!r}: use cpu, cuda or cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(
            f"device {kind!r} is not supported yet (Apple's and other GPUs are not): use cpu, cuda or cuda:N"
        )
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device {kind!r} was asked for, but PyTorch sees no CUDA GPU; use --device cpu")
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", chosen.index or 0)))
        if chosen.index >= torch.cuda.device_count():
            raise InputError(f"device {chosen} was asked for, but there are {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(chosen)
    patient = None
    if world > 1:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        # NCCL's groups meet at their first barrier, through a store that waits for ten minutes (pytorch#107177).
        patient = dist.new_group(timeout=timedelta(days=1), backend="gloo")
        assert isinstance(patient, dist.ProcessGroup)  # all of them are members
    return Processes(rank, world, chosen, patient)


def leave() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def parallelise(objective: Objective, processes: Processes, *, shard: bool) -> nn.Module:
    """The module to call in training: the objective itself, in DDP, or sharded in place by FSDP2 (``shard``)."""
    if processes.world == 1:
        return objective
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # Without one FSDP2 takes a GPU where there is one, also for processes that compute on CPUs.
        mesh = init_device_mesh(processes.device.type, (processes.world,))
        for part in objective.modules():
            if isinstance(part, Encoder | Predictor):
                for block in part.stack.blocks:
                    fully_shard(block, mesh=mesh)
                fully_shard(part, mesh=mesh)
                # What is called beside forward needs the whole weights too.
                register_fsdp_forward_method(part, "reconstruct" if isinstance(part, Predictor) else "depths")
        fully_shard(objective, mesh=mesh)
        register_fsdp_forward_method(objective, "survey")  # it may come before the step's first forward pass
        return objective
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=devices, broadcast_buffers=False)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is spread over the processes as a whole one; others as they are."""
    spread = getattr(tensor, "full_tensor", None)  # a DTensor's
    return tensor if spread is None else spread()


def spread_as(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`whole`: a tensor that every process has, spread over them as ``other`` is."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """A module's weights by name, gathered to whole CPU tensors; every process must call it."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return get_model_state_dict(module, options=_whole_on_the_cpu())


def _whole_on_the_cpu() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_state(objective: Objective, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Weights and optimisers' state by parameter name, gathered to whole CPU tensors; every process must call it.

    Optimisers that have taken no step have no state: PyTorch would make one by a step of its own (with a rate of 0),
    which AdamW's bias correction counts, so that saving would change the run.
    """
    from torch.distributed.checkpoint.state_dict import get_state_dict

    if not any(optimizer.state for optimizer in optimizers):
        return {"objective": whole_weights(objective), "optimizer": {}}
    weights, moments = get_state_dict(objective, optimizers, options=_whole_on_the_cpu())
    return {"objective": weights, "optimizer": moments}


def restore_state(objective: Objective, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, Any]) -> None:
    """The inverse of :func:`whole_state`, strict about names; the optimisers' settings stay as they are."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_state_dict

    options = StateDictOptions(full_state_dict=True, strict=True)
    weights, moments = state["objective"], state["optimizer"]
    if moments:
        settings = [{k: v for k, v in g.items() if k != "params"} for each in optimizers for g in each.param_groups]
        set_state_dict(objective, optimizers, model_state_dict=weights, optim_state_dict=moments, options=options)
        for own, group in zip(settings, (g for each in optimizers for g in each.param_groups), strict=True):
            group.update(own)
    else:
        set_model_state_dict(objective, weights, options=options)

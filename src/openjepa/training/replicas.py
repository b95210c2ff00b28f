"""Several threads that share a step: each calls a twin of the objective on its part of the batch.

A CPU's threads that share every small matrix product wait for each other a thousand times a step. These meet a few
times, so they can sleep meanwhile, and a busy neighbour costs them no more than its share of the cores.
"""

import copy
import heapq
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from openjepa.objectives.base import Objective

T = TypeVar("T")


class Replicas:
    """``count`` objectives that share their weights' memory and have gradients and sums of their own.

    The first is ``objective`` itself, in the thread that calls. Everything is added up in the replicas' order, so the
    same number of them gives the same bits.
    """

    def __init__(self, objective: Objective, count: int) -> None:
        self._meeting = _Meeting(count)
        self._all = [objective, *(_twin(objective) for _ in range(count - 1))]
        self._pool = ThreadPoolExecutor(count - 1, "replica") if count > 1 else None
        if count > 1:
            for place, replica in enumerate(self._all):
                replica.add_up = self._meeting.seat(place)
        divide = weakref.WeakMethod(self.divide)  # else objective and replicas would keep each other in memory
        objective.divide = lambda sizes, work: (divide() or Objective.undivided)(sizes, work)

    def __call__(self, work: Callable[[Objective, int], T]) -> list[T]:
        """What ``work(replica, place)`` gives for each, all at the same time; the first error of any is raised."""
        if self._pool is None:
            return [work(self._all[0], 0)]
        found: dict[int, T] = {}
        errors: list[BaseException] = []

        def attempt(place: int) -> None:
            try:
                found[place] = work(self._all[place], place)
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
                errors.append(error)
                self._meeting.call_off()

        others = [self._pool.submit(attempt, place) for place in range(1, len(self._all))]
        attempt(0)
        for other in others:
            other.result()
        if errors:  # the others may have waited in vain for the first who failed
            self._meeting.again()
            raise errors[0]
        return [found[place] for place in range(len(self._all))]

    def shares(self, sizes: Sequence[int]) -> list[list[int]]:
        """The places of ``sizes`` in as many lists as there are replicas, of nearly the same sum each."""
        shares: list[list[int]] = [[] for _ in self._all]
        heap = [(0, place) for place in range(len(shares))]
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            total, place = heap[0]
            shares[place].append(index)
            heapq.heapreplace(heap, (total + sizes[index], place))
        return shares

    def divide(self, sizes: Sequence[int], work: Callable[[list[int]], None]) -> None:
        """``work`` on each of the :meth:`shares`, all at the same time and without gradients: what memory bounds and
        one thread would do while the others wait."""
        shares = self.shares(sizes)

        def own(_: Objective, place: int) -> None:
            with torch.no_grad():
                if shares[place]:
                    work(shares[place])

        self(own)

    @torch.no_grad()
    def gather(self) -> None:
        """Bring the gradients and the sums of all replicas into the first, and empty the others'."""
        first, *others = ([p for p in replica.parameters() if p.requires_grad] for replica in self._all)

        def add(own: list[int]) -> None:
            for place in own:
                mine = first[place]
                for other in others:
                    theirs, other[place].grad = other[place].grad, None
                    if theirs is not None:
                        mine.grad = theirs if mine.grad is None else mine.grad.add_(theirs)

        if others:
            self.divide([parameter.numel() for parameter in first], add)
        for other in self._all[1:]:
            for mine, theirs in zip(self._all[0].gathered, other.gathered, strict=True):
                mine += theirs
                theirs.zero_()


def _twin(objective: Objective) -> Objective:
    """A copy that shares the memory of every parameter and buffer, but for the sums that it gathers itself."""
    apart = {id(tensor) for tensor in objective.gathered}
    shared: dict[int, Tensor] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in objective.parameters()
    }
    shared |= {id(buffer): buffer for buffer in objective.buffers() if id(buffer) not in apart}
    return copy.deepcopy(objective, shared).train()


class _Meeting:
    """Where replicas add tensors up: each waits there for all others."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self._brought: list[list[Tensor]] = [[] for _ in range(count)]

    def seat(self, place: int) -> Callable[[list[Tensor]], None]:
        """What the replica at ``place`` calls to replace each of its tensors by the sum over all replicas."""

        @torch.no_grad()
        def add_up(tensors: list[Tensor]) -> None:
            self._brought[place] = tensors
            self._barrier.wait()
            sums = [torch.stack(alike).sum(0) for alike in zip(*self._brought, strict=True)]
            self._barrier.wait()  # nobody writes before everybody has read
            for mine, total in zip(tensors, sums, strict=True):
                mine.copy_(total)

        return add_up

    def call_off(self) -> None:
        """Wake those who wait for one who will not come."""
        self._barrier.abort()

    def again(self) -> None:
        """Ready for the next meeting, after one was called off."""
        self._barrier.reset()

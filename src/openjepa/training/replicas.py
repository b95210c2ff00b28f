"""Several threads that share a step: each calls a twin of the objective on its part of the batch.

A CPU's threads that share every small matrix product wait for each other a thousand times a step. These meet a few
times, so they can sleep meanwhile, and a busy neighbour costs them no more than its share of the cores.
"""

import copy
import heapq
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from openjepa.objectives.base import Objective

T = TypeVar("T")


class Replicas:
    """``count`` twins of an objective that share its weights' memory and have gradients and sums of their own.

    Everything is added up in the replicas' order, so the same number of them gives the same bits.

    Args:
        objective: whose weights they are; a single replica is the objective itself.
        count: of replicas.
        products: the precision that autocast has matrix products in. Several replicas share one copy of the float32
            weights of linear layers in it, where autocast would cast them in each, and their gradients come in it. That
            changes no bit where these weights are used for autocast's products alone, once each.
    """

    def __init__(self, objective: Objective, count: int, *, products: torch.dtype | None = None) -> None:
        self._objective = objective
        self._meeting = _Meeting(count)
        self._pool = ThreadPoolExecutor(count - 1, "replica") if count > 1 else None
        self._all: list[Objective] = [objective]
        self._copies: dict[nn.Parameter, Tensor] = {}
        if count > 1:
            if products is not None:
                self._copies = {
                    parameter: parameter.detach().to(products)
                    for part in objective.modules()
                    if isinstance(part, nn.Linear)
                    for parameter in part.parameters(recurse=False)
                    if parameter.dtype == torch.float32
                }
            self._all = [_twin(objective, self._copies) for _ in range(count)]
            for place, replica in enumerate(self._all):
                replica.add_up = self._meeting.seat(place)
        self._parameters = [list(objective.parameters()), *(list(replica.parameters()) for replica in self._all)]
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
            self._empty()
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

    def renew(self) -> None:
        """Bring the shared copies up to date with the weights; to be called after every change of these."""
        weights, copies = [*self._copies], [*self._copies.values()]
        if copies:
            self.divide(
                [weight.numel() for weight in weights],
                lambda own: torch._foreach_copy_([copies[place] for place in own], [weights[place] for place in own]),
            )

    @torch.no_grad()
    def gather(self) -> None:
        """Bring the gradients and the sums of all replicas into the objective, and empty theirs."""
        if self._pool is None:
            return
        wanted, *each = self._parameters

        def add(own: list[int]) -> None:
            for place in own:
                mine = wanted[place]
                for replica in each:
                    theirs, replica[place].grad = replica[place].grad, None
                    if theirs is not None and mine.requires_grad:
                        mine.grad = theirs.to(mine.dtype) if mine.grad is None else mine.grad.add_(theirs)

        self.divide([parameter.numel() for parameter in wanted], add)
        for replica in self._all:
            for mine, theirs in zip(self._objective.gathered, replica.gathered, strict=True):
                mine += theirs
                theirs.zero_()

    def _empty(self) -> None:
        """Leave no gradient and no sum in a twin, for a step that nobody goes on with."""
        for replica in self._all:
            replica.zero_grad(set_to_none=True)
            for sums in replica.gathered:
                sums.zero_()


def _twin(objective: Objective, copies: Mapping[nn.Parameter, Tensor]) -> Objective:
    """A copy that shares the memory of every buffer and parameter (of its copy, where it has one), but for the sums
    that it gathers itself."""
    apart = {id(tensor) for tensor in objective.gathered}
    shared: dict[int, Tensor] = {
        id(p): nn.Parameter(copies.get(p, p.detach()), requires_grad=p.requires_grad) for p in objective.parameters()
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

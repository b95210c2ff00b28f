"""A step's kernels recorded once and launched together (CUDA graphs).

A small network's step is a thousand small kernels, which a processor takes longer to launch than a GPU to compute. The
kernels are those of the step as it comes, so its numbers are the same.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.masks import Masks

Work = Callable[[Float[Tensor, "B C *S"], list[Masks]], Tensor]

# Calls before the recording, in which libraries settle what they settle once.
_WARM = 3


class Recording:
    """Calls a function of a batch as it is a few times, then records it, and from then on replays the recording.

    The function leaves gradients and gives a tensor, which lies where it lay at the recording and is to be read before
    the next call. Where batches differ in shape it is called as it is, as it is where it waits for the GPU somewhere.

    Args:
        parameters: of which the function leaves gradients; none has one when it is called.

    Attributes:
        made: whether there is a recording.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._shapes: list[torch.Size] = []
        self._calls, self._refused = 0, False
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def made(self) -> bool:
        return self._graph is not None

    def __call__(self, work: Work, x: Float[Tensor, "B C *S"], masks: list[Masks]) -> Tensor:
        """What ``work(x, masks)`` gives; every call brings the same work."""
        given = _tensors(x, masks)
        shapes = [part.shape for part in given]
        if not self.made:
            # Packed and reference masks have a shape of their own in most steps. By chance some in a row have the
            # same, and a recording of it would keep a whole step's memory for the few steps that it fits.
            self._refused = self._refused or bool(self._shapes and shapes != self._shapes)
            self._calls, self._shapes = self._calls + 1, shapes
            if self._calls > _WARM and not self._refused:
                self._record(work, x, masks)
        if self._graph is None or shapes != self._shapes:
            return work(x, masks)
        for own, part in zip(_tensors(self._x, self._masks), given, strict=True):
            own.copy_(part)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._found

    def _record(self, work: Work, x: Tensor, masks: list[Masks]) -> None:
        self._x, self._masks = x.clone(), [own.clone() for own in masks]
        try:
            graph = torch.cuda.CUDAGraph()
            side = torch.cuda.Stream()
            # The outer one leads back from the side stream whatever happens in the inner one. The loader's thread,
            # which pins memory meanwhile, is not part of the recording.
            with (
                torch.cuda.stream(side),
                torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
            ):
                self._found = work(self._x, self._masks)
        except RuntimeError as error:
            self._refused = True
            warnings.warn(
                f"the step cannot be recorded and is computed as it comes, which is slower for a small network "
                f"({str(error).splitlines()[0]})",
                stacklevel=3,
            )
            for parameter in self._parameters:
                parameter.grad = None
            return
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._graph = graph


def _tensors(x: Tensor, masks: Sequence[Masks]) -> list[Tensor]:
    parts = [part for own in masks for part in (own.context, own.targets, own.context_packed, own.keys)]
    return [x, *(part for part in parts if part is not None)]

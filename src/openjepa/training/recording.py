"""A step's kernels recorded once and launched together (CUDA graphs).

A small network's step is a thousand small kernels, which a processor takes longer to launch than a GPU to compute. The
kernels are those of the step as it comes, so its numbers are the same.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.masking import Masks

Work = Callable[[Float[Tensor, "B C *S"], Masks], Tensor]

# Calls before the recording, in which libraries settle what they settle once.
_WARM = 3


class Recording:
    """Calls ``work`` as it is a few times, then records it, and from then on replays the recording.

    What ``work`` makes, its result and the gradients that it leaves among it, lies where it lay at the recording: it is
    to be read before the next call, and a gradient is never to be set to None.

    Args:
        work: a function of a batch, which waits for the GPU nowhere.
        clear: called before the recording; afterwards no parameter has a gradient.

    Attributes:
        made: whether there is a recording, whose gradients each call writes anew.
    """

    def __init__(self, work: Work, clear: Callable[[], object]) -> None:
        self._work, self._clear = work, clear
        self._calls, self._failed = 0, False
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def made(self) -> bool:
        return self._graph is not None

    def __call__(self, x: Float[Tensor, "B C *S"], masks: Masks) -> Tensor:
        """What ``work`` gives.

        Raises:
            ValueError: the batch has another shape than that of the recording.
        """
        self._calls += 1
        # Packed masks have a shape of their own in each step.
        if self._calls > _WARM and masks.context_packed is None and not self.made and not self._failed:
            self._record(x, masks)
        if self._graph is None:
            return self._work(x, masks)
        pairs = list(zip(_tensors(self._x, self._masks), _tensors(x, masks), strict=True))
        if masks.context_packed is not None or any(own.shape != given.shape for own, given in pairs):
            raise ValueError(
                f"a recorded step takes batches of one shape and no packed masks; recorded were "
                f"{[tuple(own.shape) for own, _ in pairs]}, got {[tuple(given.shape) for _, given in pairs]}"
            )
        for own, given in pairs:
            own.copy_(given)
        self._graph.replay()
        return self._found

    def _record(self, x: Tensor, masks: Masks) -> None:
        self._clear()
        self._x, self._masks = x.clone(), masks.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            # The loader's thread, which pins memory meanwhile, is not part of it.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._found = self._work(self._x, self._masks)
        except RuntimeError as error:
            self._clear()
            self._failed = True
            warnings.warn(
                f"the step cannot be recorded and is computed as it comes, which is slower for a small network "
                f"({str(error).splitlines()[0]})",
                stacklevel=2,
            )
            return
        self._graph = graph


def _tensors(x: Tensor, masks: Masks) -> list[Tensor]:
    return [x, masks.context, masks.targets, *([] if masks.keys is None else [masks.keys])]

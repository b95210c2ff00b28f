"""What a training loop needs to know of an objective: a loss, a representation, and what follows an optimiser step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.encoder import Encoder
from openjepa.masks import Masks


@dataclass(frozen=True)
class Output:
    """A loss to differentiate, averaged over everything that is predicted, and detached numbers to log."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


def _alone(tensors: list[Tensor]) -> None:
    """With one process there is nothing to add."""


class Objective(nn.Module, ABC):
    """What is seen, what is predicted, in which space: one module that holds every weight of a run.

    A trainer whose threads share a step (``TrainingConfig.replicas``) calls :meth:`forward` and :meth:`survey` of
    twins, and :meth:`after_step` of the objective: what the one leaves for the other is in :attr:`gathered`, or in
    buffers that are changed in place. In bfloat16 the weights of a twin's linear layers are copies, for autocast's
    products alone.

    Attributes:
        add_up: adds a tensor up over all processes, in place; the trainer sets it where there are several.
        divide: calls a function with the places of things of these sizes, and without gradients: all places at once,
            or some in each of the threads that the trainer has for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_up: Callable[[list[Tensor]], None] = _alone
        self.divide: Callable[[Sequence[int], Callable[[list[int]], None]], None] = self.undivided

    @staticmethod
    @torch.no_grad()
    def undivided(sizes: Sequence[int], work: Callable[[list[int]], None]) -> None:
        """:attr:`divide` with one thread: there is nobody to share with."""
        work(list(range(len(sizes))))

    @abstractmethod
    def forward(self, x: Float[Tensor, "B C *S"], masks: Masks) -> Output:
        """The loss of a batch; image b owns the mask sets b*E to (b+1)*E - 1."""

    def check(self, x: Float[Tensor, "B C *S"], masks: Masks) -> int:
        """Refuse, by shapes alone, images and masks of another grid than this objective predicts on; returns E.

        Raises:
            ValueError: names both grids, or the rows of both.
        """
        encoder = self.representation.config
        if tuple(x.shape[2:]) != tuple(encoder.signal):
            raise ValueError(
                f"this objective predicts on the {encoder.grid.shape} tokens of images of {encoder.signal}, got images "
                f"of {tuple(x.shape[2:])}: only the encoder alone takes other sizes"
            )
        if masks.grid is not None and masks.grid != encoder.grid.shape:
            raise ValueError(
                f"masks of a grid of {masks.grid} do not fit this objective's grid of {encoder.grid.shape}"
            )
        return masks.sets(len(x))

    def check_single(self, x: Float[Tensor, "B C *S"], masks: Masks) -> None:
        """As :meth:`check`, of an objective that takes one mask set for each image."""
        if self.check(x, masks) != 1:
            raise ValueError(f"{len(x)} images need as many mask sets here, got {len(masks.context)}")

    @property
    @abstractmethod
    def representation(self) -> Encoder:
        """The encoder that a user takes home."""

    def survey(self, parts: Iterable[tuple[Tensor, Masks]]) -> None:
        """Called before the forward passes of a step that is cut into micro-batches, with all of them.

        For losses that are no mean over images; most need nothing.
        """

    @property
    def gathered(self) -> list[Tensor]:
        """Sums of this step that the trainer adds up over processes before :meth:`after_step`; usually none."""
        return []

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step with the share of the run done before it, 0 to 1 (the nearer of
        these, where it is another number)."""

    def settings(self, progress: float) -> dict[str, float]:
        """Scheduled numbers of the objective at ``progress``, to log."""
        del progress
        return {}

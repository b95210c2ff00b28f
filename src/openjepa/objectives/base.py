"""What a training loop needs to know of an objective: a loss, a representation, and what follows an optimiser step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from openjepa.encoder import Encoder
from openjepa.masking import Masks


@dataclass(frozen=True)
class Output:
    """A loss to differentiate, averaged over everything that is predicted, and detached numbers to log."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


def _alone(tensor: Tensor) -> Tensor:
    return tensor


class Objective(nn.Module, ABC):
    """What is seen, what is predicted, in which space: one module that holds every weight of a run.

    Attributes:
        over_processes: sums a tensor over all processes, differentiably; the trainer sets it where there are several.
            For losses that are no mean over images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.over_processes: Callable[[Tensor], Tensor] = _alone

    @abstractmethod
    def forward(self, x: Float[Tensor, "B C *S"], masks: Masks) -> Output:
        """The loss of a batch; image b owns the mask sets b*E to (b+1)*E - 1."""

    @property
    @abstractmethod
    def representation(self) -> Encoder:
        """The encoder that a user takes home."""

    @property
    def gathered(self) -> list[Tensor]:
        """Sums of this step that the trainer adds up over processes before :meth:`after_step`; usually none."""
        return []

    def after_step(self, progress: float) -> None:
        """Called after every optimiser step with the share of the run done before it, 0 to 1."""

    def settings(self, progress: float) -> dict[str, float]:
        """Scheduled numbers of the objective at ``progress``, to log."""
        del progress
        return {}

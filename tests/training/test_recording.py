"""What a recording does where nothing can be recorded; what it records is for a GPU to show (test_gpu.py)."""

import pytest
import torch

from openjepa.grid import TokenGrid
from openjepa.masking import MultiBlockMasking
from openjepa.masks import MultiBlockConfig
from openjepa.training.recording import Recording

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would record")


def asked(shape: str, calls: int):
    """What each call of a recording of a sum gave, and should have given."""
    masking = MultiBlockMasking(TokenGrid((14, 14)), MultiBlockConfig(shape=shape))
    weight, found = torch.nn.Parameter(torch.ones(1)), []
    recording = Recording([weight])

    def work(x, masks):
        loss = (weight * x).sum() * masks[0].context.shape[1]
        loss.backward()
        return loss.detach()

    for number in range(calls):
        x, masks = torch.full((4, 1), 1.0 + number), masking(torch.arange(4) + 4 * number, 0)
        told = recording(work, x, [masks])
        assert weight.grad is not None
        found.append((told.item(), weight.grad.item(), x.sum().item() * masks.context.shape[1]))
        weight.grad = None
    assert not recording.made
    return found


@pytest.mark.parametrize("shape", ["reference", "packed"])
def test_masks_whose_number_varies_are_never_recorded(shape):
    # Warnings are errors here, so an attempt would be told.
    found = asked(shape, 8)
    assert len({told / x for told, _, x in found}) == 1
    assert all(told == gradient == right for told, gradient, right in found)


def test_a_number_of_masks_that_comes_again_by_chance_is_not_recorded(monkeypatch):
    """A recording keeps a whole step's memory, and would be of one number of many."""
    recording, attempts = Recording([]), []
    monkeypatch.setattr(recording, "_record", lambda *given: attempts.append(given[1].shape))
    for size in (3, 2, 2, 2, 2, 2):
        recording(lambda x, masks: x.sum(), torch.ones(size, 1), [])
    assert attempts == []
    steady = Recording([])
    monkeypatch.setattr(steady, "_record", lambda *given: attempts.append(given[1].shape))
    for _ in range(4):
        steady(lambda x, masks: x.sum(), torch.ones(2, 1), [])
    assert attempts == [(2, 1)]


def test_without_a_gpu_it_is_said_once_and_computed_as_it_comes():
    with pytest.warns(UserWarning, match="cannot be recorded") as said:
        found = asked("fixed", 8)
    assert len(said) == 1
    assert all(told == gradient == right for told, gradient, right in found)

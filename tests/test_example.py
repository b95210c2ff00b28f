"""The example runs as it stands, and the public names are enough for a loop of one's own."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import openjepa

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_loop.py"


def test_the_example_runs_and_its_loss_falls():
    found = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True, timeout=200)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", found.stdout)]
    assert len(losses) == 8
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert "features: (512, 64)" in found.stdout


def test_the_example_is_short_and_uses_public_names_only():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 40
    names = [line for line in lines if re.match(r"\s*(from|import) .*openjepa", line)]
    assert len(names) == 1
    wanted = names[0].removeprefix("from openjepa import ").split(", ")
    assert set(wanted) <= set(openjepa.__all__)


def test_encoder_and_predictor_by_hand_make_the_objective():
    """The four parts, put together with plain PyTorch, give the loss and the first step of ``IJEPA``."""
    torch.manual_seed(0)
    config = openjepa.EncoderConfig(signal=(24, 16), patch=(4, 4), channels=2, width=32, depth=2, heads=2)
    narrow = openjepa.PredictorConfig(width=16, depth=1, heads=2)
    objective = openjepa.IJEPA(config, narrow)
    context_encoder, predictor = copy.deepcopy(objective.context_encoder), copy.deepcopy(objective.predictor)
    masking = openjepa.MultiBlockMasking(openjepa.TokenGrid((6, 4)), openjepa.MultiBlockConfig(targets=3), seed=5)
    samples, images = torch.tensor([7, 1, 30]), torch.rand(3, 2, 24, 16)
    masks = masking(samples, 2)

    target = F.layer_norm(objective.target_encoder(images), (32,))[torch.arange(3)[:, None, None], masks.targets]
    predicted = predictor(context_encoder(images, masks.context), masks.context, masks.targets)
    loss = F.smooth_l1_loss(predicted, target)
    output = objective(images, masks)
    torch.testing.assert_close(output.loss, loss)

    loss.backward()
    output.loss.backward()
    for mine, theirs in zip(context_encoder.parameters(), objective.context_encoder.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert all(p.grad is None for p in objective.target_encoder.parameters())

    before = [p.clone() for p in objective.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in objective.context_encoder.parameters():
            parameter += 1
    objective.after_step(0.5)  # momentum halfway from 0.996 to 1
    for old, new in zip(before, objective.target_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.002, rtol=0, atol=1e-6)


def test_the_masks_of_a_sample_do_not_depend_on_its_batch():
    masking = openjepa.MultiBlockMasking(openjepa.TokenGrid((7, 7)))
    many, one = masking(torch.arange(9), 4), masking(torch.tensor([6]), 4)
    assert torch.equal(many.context[6:7], one.context)
    assert torch.equal(many.targets[6:7], one.targets)
    assert isinstance(one, openjepa.Masks)
    assert not set(one.context.flatten().tolist()) & set(one.targets.flatten().tolist())

"""I-JEPA against its definition, computed by hand."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.masking import MultiBlockMasking
from openjepa.masks import Masks, MultiBlockConfig
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
from openjepa.objectives.noise import gaussian
from openjepa.objectives.spread import moments, variance_covariance

ENCODER = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=2)


def build(**config) -> IJEPA:
    model = IJEPA(
        ENCODER,
        PredictorConfig(width=16, depth=1, heads=2),
        IJEPAConfig(**config),
        generator=torch.Generator().manual_seed(1),
    )
    with torch.no_grad():  # a target encoder that differs from the context encoder
        for parameter in model.target_encoder.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("name", "distance"), [("smooth_l1", F.smooth_l1_loss), ("l2", F.mse_loss), ("l1", F.l1_loss)])
def test_loss_is_its_definition_block_by_block(images, name, distance):
    model = build(loss=name)
    masks = MultiBlockMasking(ENCODER.grid, MultiBlockConfig(contexts=2, target_scale=(0.1, 0.2)))(np.arange(5), 0)
    terms = []
    for row in range(10):
        image = images[row // 2][None]
        target = F.layer_norm(model.target_encoder(image), (24,))[0]
        context = model.context_encoder(image, masks.context[row][None])
        for block in masks.targets[row]:
            predicted = model.predictor(context, masks.context[row][None], block[None, None])[0, 0]
            terms.append(distance(predicted, target[block]))
    torch.testing.assert_close(model(images, masks).loss, torch.stack(terms).mean())


def test_noise_on_the_positions_goes_through_the_embedding_of_the_context(images):
    model = build(position_noise=0.5)
    masks = MultiBlockMasking(ENCODER.grid, MultiBlockConfig(contexts=2, target_scale=(0.1, 0.2)))(np.arange(5), 0)
    assert masks.keys is not None
    predictor, terms = model.predictor, []
    blocks, tokens = masks.targets.shape[1:]
    noise = 0.5 * gaussian(masks.keys, 0, blocks * tokens * 24).view(10, blocks, tokens, 24)
    for row in range(10):
        image, seen_at = images[row // 2][None], masks.context[row]
        target = F.layer_norm(model.target_encoder(image), (24,))[0]
        seen = predictor.embed(model.context_encoder(image, seen_at[None]))[0] + predictor.table[seen_at]
        for block, shift in zip(masks.targets[row], noise[row], strict=True):
            asked = predictor.mask_token[0] + predictor.table[block] + shift @ predictor.embed.weight.T
            predicted = predictor.project(predictor.stack(torch.cat([seen, asked])[None])[0, -tokens:])
            terms.append(F.smooth_l1_loss(predicted, target[block]))
    found = model(images, masks).loss
    torch.testing.assert_close(found, torch.stack(terms).mean())
    assert not torch.isclose(found, build()(images, masks).loss)
    with pytest.raises(ValueError, match=r"Masks\.keys"):
        model(images, replace(masks, keys=None))


def test_the_teacher_sees_everything_and_gets_no_gradient(images):
    model = build()
    masks = Masks(torch.tensor([[0, 1, 2]] * 5), torch.tensor([[[5, 6]]] * 5))
    before = model(images, masks).loss
    images[:, :, 12:] += 1  # seen by neither the context nor the target positions, but by the target encoder
    after = model(images, masks)
    assert not torch.equal(before, after.loss)
    after.loss.backward()
    assert all(p.grad is None for p in model.target_encoder.parameters())
    assert all(p.grad is not None for p in model.context_encoder.parameters())
    assert all(p.grad is not None for p in model.predictor.parameters())
    assert model.representation is model.target_encoder


def test_moving_average_follows_its_schedule(images):
    model = build(momentum=(0.9, 1.0))
    teacher, student = copy.deepcopy(model.target_encoder), model.context_encoder
    model.after_step(0.5)
    for moved, old, new in zip(
        model.target_encoder.parameters(), teacher.parameters(), student.parameters(), strict=True
    ):
        torch.testing.assert_close(moved, 0.95 * old + 0.05 * new)
    assert model.settings(0.0) == {"momentum": 0.9}
    assert model.settings(0.25)["momentum"] == pytest.approx(0.925)


def test_standardised_targets_have_unit_spread_in_every_feature(images):
    model = build(target_norm="feature", statistics_momentum=0.0, momentum=(1.0, 1.0))
    model.targets(images[:2])
    model.targets(images[2:])  # two micro-batches of one step
    assert model.gathered[0][0, 0, 0] == 5 * 16
    model.after_step(0.0)
    model.eval()
    standard = model.targets(images).flatten(0, 1)
    torch.testing.assert_close(standard.mean(0), torch.zeros(24), rtol=0, atol=1e-4)
    assert (standard.std(0, unbiased=False) - 1).abs().max() < 0.02
    assert not model.gathered[0].any()
    assert "standardise.mean" in model.state_dict()


@pytest.mark.parametrize("kind", ["layer", "feature", "position", "whiten"])
def test_a_collapse_shows_in_the_spread_of_targets_whatever_standardises_them(images, kind):
    model = build(target_norm=kind, statistics_momentum=0.5, momentum=(1.0, 1.0))
    with torch.no_grad():  # a teacher whose features hardly differ
        model.target_encoder.stack.norm.weight.fill_(0.01)
        model.target_encoder.stack.norm.bias.normal_()
    masks = Masks(torch.tensor([[0, 1, 2, 3]] * 5), torch.tensor([[[9, 10], [13, 14]]] * 5))
    for _ in range(20):
        found = model(images, masks).metrics["target_std"]
        model.after_step(0.0)
    assert found < 0.02


def test_packed_and_fixed_agree_where_they_hold_the_same_tokens(images):
    model = build().double()
    full = Masks(torch.tensor([[0, 1, 2, 3]] * 5), torch.tensor([[[9, 10], [13, 14]]] * 5))
    packed = torch.tensor([place for place in range(30) if place % 6 < 4])
    padded = Masks(torch.tensor([[0, 1, 2, 3, 0, 0]] * 5), full.targets, packed)
    torch.testing.assert_close(model(images.double(), full).loss, model(images.double(), padded).loss)


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_a_noise_that_is_no_standard_deviation_is_refused(noise):
    with pytest.raises(ValueError, match=rf"position_noise .* got {noise}"):
        IJEPAConfig(position_noise=noise)


def test_momentum_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\].*1\.2"):
        IJEPAConfig(momentum=(0.9, 1.2))


@pytest.mark.parametrize("padded", [False, True])
def test_the_terms_of_the_spread_are_their_definition(images, padded):
    model = build(variance_covariance=0.3)
    context = torch.tensor([[0, 1, 2, 3]] * 5)
    packed = torch.tensor([place for place in range(20) if place % 4 < 3]) if padded else None
    masks = Masks(context, torch.tensor([[[9, 10]]] * 5), packed)
    features = model.context_encoder(images, masks.context, packed).detach().numpy()
    z = features[:, : 3 if padded else 4].mean(1)
    covariance = np.cov(z, rowvar=False)
    variance = np.mean([max(0.0, 1 - np.sqrt(v + 1e-4)) for v in np.diag(covariance)])
    others = sum(covariance[i, j] ** 2 for i in range(24) for j in range(24) if i != j) / 24
    found = model(images, masks)
    assert found.metrics["variance_term"].item() == pytest.approx(variance, rel=1e-5)
    assert found.metrics["covariance_term"].item() == pytest.approx(others, rel=1e-4)
    alone = build()(images, masks).loss
    torch.testing.assert_close(found.metrics["prediction_loss"], alone)
    torch.testing.assert_close(found.loss, alone + 0.3 * np.float32(variance + others), rtol=1e-5, atol=1e-6)


def test_the_slope_of_the_spread_is_that_of_its_definition_for_the_whole_and_for_parts():
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=random, dtype=torch.float64)
    z = torch.randn(12, 6, generator=random, dtype=torch.float64) @ mixing * 0.4 + 0.3
    z.requires_grad_(True)
    covariance = torch.cov(z.T)
    variance = torch.relu(1 - (covariance.diagonal() + 1e-4).sqrt()).mean()
    others = (covariance - torch.diag(covariance.diagonal())).square().sum() / 6
    assert 0 < variance < 1
    (wanted,) = torch.autograd.grad(variance + 0.3 * others, z)
    for parts in (1, 3):
        pieces = z.detach().clone().requires_grad_(True)
        whole = torch.stack([moments(part) for part in pieces.chunk(parts)]).sum(0)
        for part in pieces.chunk(parts):
            one, other = variance_covariance(part, whole)
            assert one.item() == pytest.approx(variance.item(), rel=1e-6)
            assert other.item() == pytest.approx(others.item(), rel=1e-6)
            ((one + 0.3 * other) / parts).backward()
        torch.testing.assert_close(pieces.grad, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("progress", "momentum"), [(-0.5, 0.996), (1.0, 1.0), (1.5, 1.0), (251.0, 1.0)])
def test_outside_the_run_the_momentum_is_that_of_its_ends(progress, momentum):
    """Above 1 the target encoder would move away from the context encoder, further each step."""
    assert build().settings(progress) == {"momentum": momentum}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_noise_on_positions_is_of_the_weights_precision(dtype, images):
    model = build(position_noise=0.25).to(dtype)
    masks = MultiBlockMasking(model.context_encoder.config.grid)(np.arange(len(images)), 0)
    loss = model(images.to(dtype), masks).loss
    loss.backward()
    torch.testing.assert_close(
        loss.double(), build(position_noise=0.25)(images, masks).loss.double(), rtol=0.05, atol=0
    )

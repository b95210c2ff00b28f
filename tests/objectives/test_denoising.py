"""The denoising autoencoder against its definition, and its noise against what noise should be."""

import math

import numpy as np
import pytest
import torch

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.grid import patchify
from openjepa.masking import WholeMasking
from openjepa.masks import Masks
from openjepa.objectives.denoising import Denoising, DenoisingConfig

ENCODER = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=2)


def build(**config) -> Denoising:
    decoder = PredictorConfig(width=16, depth=1, heads=2)
    return Denoising(ENCODER, decoder, DenoisingConfig(**config), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(2))


def test_loss_is_its_definition(images):
    model = build()
    masks = WholeMasking(ENCODER.grid, seed=3)(np.arange(5), 0)
    noisy = model.corrupt(images, masks.keys)
    features = model.encoder(noisy)
    inner = model.decoder
    read = inner.project(inner.stack(inner.embed(features) + inner.table))
    torch.testing.assert_close(model(images, masks).loss, ((read - patchify(images, (4, 4))) ** 2).mean())
    model(images, masks).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_variance_of_the_clean_pixels_and_of_their_predictions_is_logged(images):
    """Every image has every place, so these are the variances down the images and of the places' means."""
    model, masks = build(), WholeMasking(ENCODER.grid, seed=3)(np.arange(5), 0)
    found = model(images, masks).metrics
    predicted = model.decoder.reconstruct(model.encoder(model.corrupt(images, masks.keys)), masks.context).detach()
    for name, values in (("target", patchify(images, (4, 4))), ("predicted", predicted)):
        over_images = values.var(0).mean(0)
        torch.testing.assert_close(found[f"{name}_over_images"], over_images.mean())
        between = (values.mean(0).var(0) - over_images / 5).clamp(min=0)
        torch.testing.assert_close(found[f"{name}_over_positions"], between.mean())
    assert not any(value.requires_grad for value in found.values())


def test_the_noise_has_the_spread_and_the_share_that_were_asked_for():
    keys = WholeMasking(ENCODER.grid)(np.arange(400), 0).keys
    assert keys is not None
    clean = torch.full((400, 1, 16, 16), 2.0)
    noise = build(noise=0.5, masked=0.0).corrupt(clean, keys) - clean
    many = noise.numel()
    assert abs(noise.mean()) < 4 * 0.5 / math.sqrt(many)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert (noise.abs() < 0.5).double().mean().item() == pytest.approx(0.6827, abs=0.006)  # a normal distribution's
    zeroed = build(noise=0.0, masked=0.3).corrupt(clean, keys) == 0
    assert zeroed.double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / many))
    # No place and no pair of neighbours is favoured.
    flat = noise.flatten(1)
    assert flat.mean(0).abs().max() < 5 * 0.5 / math.sqrt(400)
    assert abs(torch.corrcoef(torch.stack([flat[:, :-1].flatten(), flat[:, 1:].flatten()]))[0, 1]) < 0.02


def test_the_noise_of_a_sample_is_its_own_whatever_the_batch(images):
    model, masking = build(), WholeMasking(ENCODER.grid, seed=7)
    together = model.corrupt(images, masking(np.arange(5), 2).keys)
    for sample in range(5):
        alone = model.corrupt(images[sample : sample + 1], masking(np.array([sample]), 2).keys)
        torch.testing.assert_close(alone[0], together[sample])
    assert not torch.equal(together, model.corrupt(images, masking(np.arange(5), 3).keys))


def test_what_cannot_be_is_refused(images):
    with pytest.raises(ValueError, match="both 0"):
        DenoisingConfig(noise=0.0, masked=0.0)
    with pytest.raises(ValueError, match=r"got 0\.5, 1\.0"):
        DenoisingConfig(masked=1.0)
    with pytest.raises(ValueError, match=r"Masks\.keys"):
        build()(images, Masks(torch.arange(16).expand(5, -1), torch.arange(16).expand(5, 1, -1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_corrupted_signal_is_of_the_images_precision(dtype, images):
    masks = WholeMasking(ENCODER.grid)(np.arange(5), 0)
    model = build().to(dtype)
    loss = model(images.to(dtype), masks).loss
    loss.backward()
    torch.testing.assert_close(loss.double(), build()(images, masks).loss.double(), rtol=0.05, atol=0)

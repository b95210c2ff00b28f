"""MAE against its definition, computed by hand, and against transformers' loss."""

import numpy as np
import pytest
import torch

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.grid import patchify
from openjepa.masking import RandomMasking
from openjepa.masks import Masks
from openjepa.objectives.mae import MAE, MAEConfig

ENCODER = EncoderConfig(signal=(16, 8), patch=(4, 4), channels=3, width=24, depth=2, heads=2)


def build(**config) -> MAE:
    decoder = PredictorConfig(width=16, depth=2, heads=2)
    return MAE(ENCODER, decoder, MAEConfig(**config), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 16, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_is_its_definition_patch_by_patch(images, normalise):
    model = build(normalise=normalise)
    masks = RandomMasking(ENCODER.grid)(np.arange(5), 0)
    assert masks.context.shape == (5, 2)
    assert masks.targets.shape == (5, 1, 6)
    terms = []
    for image, seen, hidden in zip(images, masks.context, masks.targets[:, 0], strict=True):
        predicted = model.decoder(model.encoder(image[None], seen[None]), seen[None], hidden[None, None])[0, 0]
        for value, place in zip(predicted, hidden.tolist(), strict=True):
            row, column = divmod(place, 2)
            pixels = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            if normalise:
                pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            terms.append(((value - pixels) ** 2).mean())
    torch.testing.assert_close(model(images, masks).loss, torch.stack(terms).mean())


def test_loss_is_that_of_transformers(images):
    """Their loss for their predictions, from our targets and the mean over hidden patches."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        image_size=16, patch_size=4, num_channels=3, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, norm_pix_loss=True,
    )  # fmt: skip
    square = torch.cat([images, images.flip(2)], 3)
    with torch.no_grad():
        theirs = transformers.ViTMAEForPreTraining(config).eval()(square)
    encoder = EncoderConfig(signal=(16, 16), patch=(4, 4), width=24, depth=1, heads=2)
    ours = MAE(encoder, PredictorConfig(width=16, depth=1, heads=2))
    # Their patches have the channels last, ours have them first.
    predicted = theirs.logits.view(5, 16, 4, 4, 3).permute(0, 1, 4, 2, 3).flatten(2)
    error = (predicted - ours.targets(square)).square()[theirs.mask.bool()]
    torch.testing.assert_close(error.mean(), theirs.loss)


def test_the_variance_of_the_hidden_pixels_and_of_their_predictions_is_logged(images):
    """Where every image hides the same places, these are the variances down the images and of the places' means."""
    model = build(normalise=False)
    hidden = torch.tensor([1, 2, 4, 5, 6, 7])
    masks = Masks(torch.tensor([[0, 3]] * 5), hidden.expand(5, 1, -1))
    found = model(images, masks).metrics
    predicted = model.decoder(model.encoder(images, masks.context), masks.context, masks.targets)[:, 0]
    for name, values in (("target", patchify(images, (4, 4))[:, hidden]), ("predicted", predicted.detach())):
        over_images = values.var(0).mean(0)
        torch.testing.assert_close(found[f"{name}_over_images"], over_images.mean())
        between = (values.mean(0).var(0) - over_images / 5).clamp(min=0)
        torch.testing.assert_close(found[f"{name}_over_positions"], between.mean())
    assert not any(value.requires_grad for value in found.values())


def test_hidden_pixels_reach_the_loss_as_targets_only(images):
    model = build(normalise=False)
    masks = Masks(torch.tensor([[0, 3]] * 5), torch.tensor([[[1, 2, 4, 5, 6, 7]]] * 5))
    seen = model.encoder(images, masks.context)
    images[:, :, :4, 4:] += 1  # token 1
    torch.testing.assert_close(model.encoder(images, masks.context), seen)
    model(images, masks).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.representation is model.encoder


def test_a_constant_patch_is_no_division_by_zero():
    target = build().targets(torch.ones(1, 3, 16, 8))
    assert torch.equal(target, torch.zeros_like(target))


def test_targets_without_normalisation_are_the_pixels(images):
    assert torch.equal(build(normalise=False).targets(images), patchify(images, (4, 4)))


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.0"):
        MAEConfig(visible=1.0)
    with pytest.raises(ValueError, match=r"0\.01 leaves 0 of the 8 tokens"):
        RandomMasking(ENCODER.grid, 0.01)


def test_patches_of_one_value_have_no_variance_to_be_normalised_by():
    single = EncoderConfig(signal=(4, 4), patch=(1, 1), channels=1, width=24, depth=1, heads=2)
    with pytest.raises(InputError, match="a patch of one value has no variance"):
        MAE(single, PredictorConfig(width=16, depth=1, heads=2))
    MAE(single, PredictorConfig(width=16, depth=1, heads=2), MAEConfig(normalise=False))

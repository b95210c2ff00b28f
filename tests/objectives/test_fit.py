"""Images and masks that do not belong together are refused: what would be trained on is not what was meant.

Shapes alone are looked at, so that no GPU is waited for.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openjepa.encoder import Encoder, EncoderConfig, PredictorConfig
from openjepa.grid import TokenGrid
from openjepa.masking import MultiBlockMasking, RandomMasking, WholeMasking
from openjepa.masks import Masks, MultiBlockConfig
from openjepa.objectives.base import Objective
from openjepa.objectives.denoising import Denoising
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
from openjepa.objectives.mae import MAE
from openjepa.training.step import _cut

ENCODER = EncoderConfig(signal=(32, 32), patch=(4, 4), channels=1, width=12, depth=1, heads=2)
MASKINGS = {IJEPA: MultiBlockMasking, MAE: RandomMasking, Denoising: WholeMasking}


@pytest.fixture(params=MASKINGS, ids=lambda kind: kind.__name__)
def objective(request) -> Objective:
    return request.param(ENCODER, PredictorConfig(width=8, depth=1, heads=2))


def masks_for(objective: Objective, images: int, grid: tuple[int, ...] = (8, 8)) -> Masks:
    return MASKINGS[type(objective)](TokenGrid(grid))(np.arange(images), 0)


@pytest.mark.parametrize("rows", [2, 6])
def test_as_many_masks_as_images(objective, rows):
    """Of four images with the masks of two, the first two alone would be trained on."""
    x = torch.randn(4, 1, 32, 32)
    assert objective(x, masks_for(objective, 4)).loss.isfinite()
    with pytest.raises(ValueError, match=f"{rows} mask sets cannot be those of 4 images"):
        objective(x, masks_for(objective, rows))


def test_several_contexts_an_image_are_for_ijepa():
    x = torch.randn(2, 1, 32, 32)
    masks = MultiBlockMasking(ENCODER.grid, MultiBlockConfig(contexts=2))(np.arange(2), 0)
    predictor = PredictorConfig(width=8, depth=1, heads=2)
    assert IJEPA(ENCODER, predictor)(x, masks).loss.isfinite()
    for other in (MAE, Denoising):
        with pytest.raises(ValueError, match="2 images need as many mask sets here, got 4"):
            other(ENCODER, predictor)(x, masks)


def test_images_of_another_size_than_the_predictor_is_for(objective):
    """A picture of 4x16 tokens has as many as one of 8x8, whose positions the predictor would read."""
    masks = masks_for(objective, 2, (4, 16))
    for given in (masks, replace(masks, grid=None)):
        with pytest.raises(ValueError, match=r"\(8, 8\) tokens of images of \(32, 32\), got images of \(16, 64\)"):
            objective(torch.randn(2, 1, 16, 64), given)
    assert objective.representation(torch.randn(2, 1, 16, 64)).shape == (2, 64, 12)


def test_masks_of_another_grid_are_refused_and_of_none_are_taken_as_they_are(objective):
    x = torch.randn(2, 1, 32, 32)
    with pytest.raises(ValueError, match=r"masks of a grid of \(7, 7\) do not fit .* \(8, 8\)"):
        objective(x, masks_for(objective, 2, (7, 7)))
    masks = masks_for(objective, 2)
    known, unknown = objective(x, masks).loss, objective(x, replace(masks, grid=None)).loss
    assert torch.equal(known, unknown)


@pytest.mark.parametrize("shape", ["fixed", "packed", "reference"])
def test_masks_keep_their_grid(shape):
    grid = TokenGrid((14, 14))
    masks = MultiBlockMasking(grid, MultiBlockConfig(shape=shape))(np.arange(4), 0)
    assert {one.grid for one in (masks, masks.rows(1, 3), masks.clone(), masks.to("cpu"))} == {(14, 14)}


def test_an_encoder_wants_a_row_of_tokens_for_each_image(as_in_use):
    with pytest.raises(ValueError, match="each of 4 images needs its row of tokens to keep, got 2 rows"):
        Encoder(ENCODER)(torch.randn(4, 1, 32, 32), torch.zeros(2, 5, dtype=torch.long))


def test_a_batch_is_not_cut_into_parts_with_masks_of_another_number():
    masks = MultiBlockMasking(ENCODER.grid)(np.arange(6), 0)
    with pytest.raises(ValueError, match="6 mask sets cannot be those of 4 images"):
        _cut(torch.randn(4, 1, 32, 32), masks, 2)


def test_a_survey_of_micro_batches_looks_too():
    objective = IJEPA(ENCODER, PredictorConfig(width=8, depth=1, heads=2), IJEPAConfig(variance_covariance=0.1))
    with pytest.raises(ValueError, match="2 mask sets cannot be those of 4 images"):
        objective.survey([(torch.randn(4, 1, 32, 32), masks_for(objective, 2))])

"""A configuration made in Python takes no word or number that means nothing: it would pass for another."""

import pytest
import torch

from openjepa.encoder import Encoder, EncoderConfig, PredictorConfig
from openjepa.experiment import Experiment
from openjepa.interop.assembly import join_ijepa
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.step import TrainingConfig

ENCODER = EncoderConfig(signal=(8, 8), patch=(4, 4), channels=1, width=8, depth=3, heads=2)
PREDICTOR = PredictorConfig(width=8, depth=1, heads=2)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (IJEPAConfig, {"target_norm": "features"}, r"IJEPAConfig.target_norm is 'features', not one of 'layer', 'feat"),
        (IJEPAConfig, {"loss": "huber"}, "loss is 'huber', not one of 'smooth_l1', 'l2', 'l1'"),
        (IJEPAConfig, {"momentum": (0.9, 0.95, 1.0)}, r"momentum is \(0.9, 0.95, 1.0\), and 2 numbers are needed"),
        (IJEPAConfig, {"momentum": 0.9}, "momentum is 0.9, and 2 numbers"),
        (IJEPAConfig, {"target_depths": (-1, 2)}, r"counted from 0, .* got \(-1, 2\)"),
        (IJEPAConfig, {"variance_covariance": float("nan")}, "variance_covariance=nan"),
        (MultiBlockConfig, {"shape": "fixd"}, "shape is 'fixd', not one of 'fixed', 'packed', 'reference'"),
        (MultiBlockConfig, {"target_scale": (0.1, 0.2, 0.3)}, "target_scale is .* 2 numbers"),
        (MultiBlockConfig, {"context_tokens": 0}, "context_tokens is 1 or more"),
        (EncoderConfig, {"positions": "rope"}, "positions is 'rope', not one of 'sincos', 'learned'"),
        (EncoderConfig, {"channels": 0}, "channels=0"),
        (EncoderConfig, {"width": 0, "heads": 1}, "width 0"),
        (EncoderConfig, {"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
        (PredictorConfig, {"norm_eps": -1.0}, "norm_eps=-1.0"),
        (TrainingConfig, {"precision": "fp16"}, "precision is 'fp16', not one of 'bf16', 'float32'"),
        (OptimizerConfig, {"betas": (0.9, 0.99, 0.999)}, "betas is .* 2 numbers"),
        (Experiment, {"predictor": PredictorConfig(width=2, heads=1)}, "a width of 2 is too small for positions"),
        (Experiment, {"encoder": EncoderConfig(width=3, heads=1)}, "a width of 3 is too small for positions"),
        (Experiment, {"method": "dino"}, "method is 'dino', not one of 'ijepa', 'mae', 'denoising'"),
    ],
)
def test_what_means_nothing_is_refused_with_the_value(kind, settings, said, as_in_use):
    with pytest.raises(ValueError, match=said):
        kind(**settings)


def test_depths_that_the_encoder_has_not_are_refused_where_both_are_known():
    config = IJEPAConfig(target_depths=(0, 3))
    objective = IJEPA(ENCODER, PREDICTOR, config)
    joined = join_ijepa(objective.context_encoder, objective.target_encoder, objective.predictor, config)
    assert joined.config == config
    beyond = IJEPAConfig(target_depths=(2, 5))
    with pytest.raises(ValueError, match="between 0 and the encoder's depth of 3, got 5"):
        IJEPA(ENCODER, PREDICTOR, beyond)
    with pytest.raises(ValueError, match="between 0 and the encoder's depth of 3, got 5"):
        join_ijepa(objective.context_encoder, objective.target_encoder, objective.predictor, beyond)


@pytest.mark.parametrize("count", [0, -1])
def test_no_last_blocks_at_all_are_refused(count):
    with pytest.raises(ValueError, match=f"one or more, got count={count}"):
        Encoder(ENCODER).last_blocks(torch.zeros(1, 1, 8, 8), count)

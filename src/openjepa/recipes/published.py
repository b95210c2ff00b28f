"""The published I-JEPA recipe, flaws and all: reference masks, LayerNorm targets, its schedules and its sizes.

Paper:    Assran et al. 2023 (arXiv 2301.08243), sec. 4 and app. A.1; values as implemented by the authors
Command:  torchrun --nproc-per-node 8 -m openjepa pretrain IMAGES --out RUN --recipe published-h14 --epochs 300 \
          --training.accumulate 2    (128 images a micro-batch, whose masks are cut to the shortest; alone it is 16)
Hardware: 16 A100 for H/14 in the paper, under 72 hours; not run here
Result:   ImageNet-1k linear probe in the paper: B/16 72.9, L/16 77.5, H/14 79.3, H/16 at 448 px 81.1; not measured here
"""

from openjepa.data.augmentation import Augmentation
from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.experiment import Experiment
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.ijepa import IJEPAConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import TrainingConfig

# name: pixels, patch, width, depth, heads, MLP ratio of the encoder, predictor depth
_SIZES = {
    "published-b16": (224, 16, 768, 12, 12, 4.0, 6),
    "published-l16": (224, 16, 1024, 24, 16, 4.0, 12),
    "published-h14": (224, 14, 1280, 32, 16, 4.0, 12),
    "published-h16-448": (448, 16, 1280, 32, 16, 4.0, 12),
    "published-g16": (224, 16, 1408, 40, 16, 48 / 11, 16),
}
NAMES = tuple(_SIZES)


def published(name: str) -> Experiment:
    """The recipe of one published size, for RGB images with ImageNet's mean and standard deviation."""
    pixels, patch, width, depth, heads, mlp_ratio, predictor_depth = _SIZES[name]
    return Experiment(
        recipe=name,
        encoder=EncoderConfig(
            signal=(pixels, pixels), patch=(patch, patch), width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio
        ),
        predictor=PredictorConfig(width=384, depth=predictor_depth, heads=heads),
        masks=MultiBlockConfig(shape="reference"),
        ijepa=IJEPAConfig(),
        augmentation=Augmentation(crop_scale=(0.3, 1.0)),
        schedule=ScheduleConfig(warmup=40 / 300),
        training=TrainingConfig(batch=2048, accumulate=16, recompute=True, steps=187_500),
    )

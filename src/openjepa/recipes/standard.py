"""A GPU and photos: ViT-S/16 at 224 px, with fair masks and whitened targets.

Paper:    I-JEPA (Assran et al. 2023), ViT-S with the predictor at half its width
Command:  openjepa pretrain IMAGES --out RUN --recipe standard
Hardware: one GPU; on an H100 about 5,000 images/s if they come that fast (benchmarks/README.md)
Result:   not measured at full length
"""

from openjepa.data.augmentation import Augmentation
from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.experiment import Experiment
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.ijepa import IJEPAConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import TrainingConfig


def standard(
    *, signal: tuple[int, int], patch: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Experiment:
    """ViT-S; ``signal`` and ``patch`` in pixels, ``mean`` and ``std`` of each channel."""
    return Experiment(
        recipe="standard",
        mean=mean,
        std=std,
        encoder=EncoderConfig(signal=signal, patch=patch, channels=len(mean), width=384, depth=12, heads=6),
        predictor=PredictorConfig(width=192, depth=6, heads=6),
        masks=MultiBlockConfig(),
        ijepa=IJEPAConfig(momentum=(0.996, 1.0), target_norm="whiten", statistics_momentum=0.95),
        augmentation=Augmentation(crop_scale=(0.3, 1.0)),
        schedule=ScheduleConfig(lr=1e-3, start_lr=2e-4),
        training=TrainingConfig(batch=BATCH),
    )


# Images of a step, which the learning rates are for.
BATCH = 256

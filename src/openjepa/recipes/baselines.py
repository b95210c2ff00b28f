"""What predicts pixels, beside I-JEPA: the same encoder, data and augmentation, with MAE's optimiser.

Paper:    MAE (He et al. 2022, app. A.1): AdamW, betas (0.9, 0.95), weight decay 0.05, cosine, warm-up over a twentieth
          (there 40 of 800 epochs), a quarter of the patches seen. Denoising autoencoder (Vincent et al. 2010): the
          corruption; the optimiser is MAE's, since the paper's (plain SGD, a layer at a time) is not for transformers
Ours:     batch, decoder and lr. MAE's paper has 1.5e-4 per 256 images, which is 3.75e-5 at a batch of 64
Command:  openjepa pretrain IMAGES --out RUN --objective mae        (or denoising)
Hardware: two CPU cores for ``small``; ``standard`` was not run at full length
Result:   see LOG.md and benchmarks/
"""

import math
from dataclasses import replace

from openjepa.encoder import PredictorConfig
from openjepa.experiment import Experiment, Method
from openjepa.recipes import small, standard
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig

# Decoder and highest lr. MAE's 1e-3 was better than 3e-3 on the sample (k-NN 78.3 and 71.0, probe 83.4 and 78.3, about
# 3,400 steps: LOG.md, 2026-11-26, "The small recipe: 192x6, batch 64"); 5e-4 and 2.5e-4 have 1.7 and 1.6 points more of
# k-NN, 0.2 and 0.6 less of probe (3,000 steps, two seeds: benchmarks/README.md). Denoising's was not tuned.
_SMALL = {
    "mae": (PredictorConfig(width=96, depth=2, heads=3), 1e-3),
    "denoising": (PredictorConfig(width=96, depth=1, heads=3), 1e-3),
}
_STANDARD = {
    "mae": (PredictorConfig(width=256, depth=4, heads=8), 6e-4),
    "denoising": (PredictorConfig(width=256, depth=2, heads=8), 6e-4),
}


def baseline(experiment: Experiment, method: Method) -> Experiment:
    """The I-JEPA recipe ``experiment`` with another method in its place (for ``ijepa``: itself).

    The learning rate goes with the root of its batch, as :func:`openjepa.recipes.choice.scaled` has it. What moves the
    matrices is the experiment's, so that objectives differ in nothing else.
    """
    if method == "ijepa":
        return experiment
    settings, batch = (_SMALL, small.BATCH) if experiment.recipe == "small" else (_STANDARD, standard.BATCH)
    decoder, lr = settings[method]
    lr *= math.sqrt(experiment.training.batch / batch)
    return replace(
        experiment,
        method=method,
        predictor=decoder,
        schedule=ScheduleConfig(
            start_lr=0.0, lr=lr, final_lr=0.0, warmup=0.05, weight_decay=0.05, final_weight_decay=0.05
        ),
        optimizer=replace(experiment.optimizer, betas=(0.9, 0.95), eps=OptimizerConfig.eps, clip=None),
    )

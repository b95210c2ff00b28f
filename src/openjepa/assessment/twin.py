"""The untrained twin that stands beside every encoder."""

from dataclasses import replace

import torch

from openjepa.encoder import Encoder
from openjepa.pretrained import Pretrained

# Of the random encoder's weights; any number but a usual run's seed.
RANDOM_SEED = 20_231_108


def random_twin(pretrained: Pretrained) -> Pretrained:
    """A random encoder of the same shape, with the same preprocessing, on the same device."""
    config = replace(pretrained.encoder.config, positions="sincos")
    random = Encoder(config, generator=torch.Generator().manual_seed(RANDOM_SEED))
    return Pretrained(random, pretrained.preprocessing).to(pretrained.device)

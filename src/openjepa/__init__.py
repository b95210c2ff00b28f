"""openjepa: train a vision encoder on your own unlabelled images by predicting in latent space, and trust it.

    encoder = openjepa.load("runs/mine")
    features = encoder.encode(images)

Names are imported on first use, so that the command line starts quickly.
"""

import importlib
from typing import TYPE_CHECKING, Any

from openjepa._version import __version__

if TYPE_CHECKING:
    from openjepa.data.augmentation import Preprocessing
    from openjepa.encoder import Encoder, EncoderConfig, Predictor, PredictorConfig
    from openjepa.grid import TokenGrid
    from openjepa.masking import MultiBlockMasking
    from openjepa.masks import Masks, MultiBlockConfig
    from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
    from openjepa.pretrained import Pretrained, load

__all__ = [
    "IJEPA",
    "Encoder",
    "EncoderConfig",
    "IJEPAConfig",
    "Masks",
    "MultiBlockConfig",
    "MultiBlockMasking",
    "Predictor",
    "PredictorConfig",
    "Preprocessing",
    "Pretrained",
    "TokenGrid",
    "__version__",
    "load",
]

_HOMES = {
    "openjepa.data.augmentation": ("Preprocessing",),
    "openjepa.encoder": ("Encoder", "EncoderConfig", "Predictor", "PredictorConfig"),
    "openjepa.grid": ("TokenGrid",),
    "openjepa.masking": ("MultiBlockMasking",),
    "openjepa.masks": ("Masks", "MultiBlockConfig"),
    "openjepa.objectives.ijepa": ("IJEPA", "IJEPAConfig"),
    "openjepa.pretrained": ("Pretrained", "load"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'openjepa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

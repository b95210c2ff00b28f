"""VICReg's variance and covariance terms, which keep features from shrinking and from repeating one another.

Source: Bardes, Ponce and LeCun 2022 (arXiv 2105.04906), sec. 4.1, eq. 1 to 4; beside I-JEPA: C-JEPA (Mo and Tong 2024,
arXiv 2410.19560).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_EPS = 1e-4


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def variance_covariance(
    features: Float[Tensor, "R D"], over_processes: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How far the standard deviations of the features fall short of 1 (mean over D), and the sum of the squared
    covariances between different features over D.

    ``over_processes`` sums a tensor over all processes, differentiably, so that several equal one. Both terms need the
    whole step at once, so gradients cannot be accumulated (:class:`openjepa.experiment.Experiment` refuses it).
    """
    z = features.float()
    rows, width = z.shape
    count = over_processes(z.new_tensor(float(rows)))
    z = z - over_processes(z.sum(0)) / count
    covariance = over_processes(z.T @ z) / (count - 1).clamp(min=1)
    spread = (covariance.diagonal() + _EPS).sqrt()
    others = covariance - torch.diag(covariance.diagonal())
    return F.relu(1 - spread).mean(), others.square().sum() / width

"""Label-free measures of an embedding's spectrum: has it collapsed to few directions?"""

import torch
from jaxtyping import Float
from torch import Tensor

# The sample size of the RankMe paper; more changes the value little and costs time.
RANKME_IMAGES = 25_600


def rankme(values: Float[Tensor, "n D"]) -> float:
    """The effective rank of an embedding: exp of the entropy of its normalised singular values (Garrido et al. 2023).

    p = s / sum(s) + 1e-7 over the singular values s of the n x D matrix, not centred; between 1 and min(n, D). A matrix
    of zeros has rank 1, the value of any constant output. Raises ValueError for an empty matrix.
    """
    if values.numel() == 0:
        raise ValueError(f"RankMe needs at least one value, got a matrix of {tuple(values.shape)}")
    singular = torch.linalg.svdvals(values.detach().double())
    total = singular.sum()
    if total == 0:
        return 1.0
    p = singular / total + 1e-7
    return float((-(p * p.log()).sum()).exp())

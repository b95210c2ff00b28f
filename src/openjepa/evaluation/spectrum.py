"""Label-free measures of an embedding's spectrum: has it collapsed to few directions?"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# The sample size of the RankMe paper; more changes the value little and costs time.
RANKME_IMAGES = 25_600


def rankme(values: Float[Tensor, "n D"]) -> float:
    """The effective rank of an embedding: exp of the entropy of its normalised singular values (Garrido et al. 2023).

    p = s / sum(s) + 1e-7 over the singular values s of the n x D matrix, not centred; held between 1 and min(n, D),
    which the 1e-7 would leave by a thousandth. A matrix of zeros has rank 1, the value of any constant output. Raises
    ValueError for an empty matrix.
    """
    if values.numel() == 0:
        raise ValueError(f"RankMe needs at least one value, got a matrix of {tuple(values.shape)}")
    singular = torch.linalg.svdvals(values.detach().double())
    return _effective_rank(singular, min(values.shape))


def _effective_rank(weights: Float[Tensor, "r"], most: int) -> float:
    """exp of the entropy of weights of 0 and more, held between 1 and ``most``."""
    total = weights.sum()
    if total == 0:
        return 1.0
    p = weights / total + 1e-7
    return min(max(float((-(p * p.log()).sum()).exp()), 1.0), float(most))


def lidar(views: Float[Tensor, "n q D"], *, ridge: float = 1e-4) -> float:
    """LiDAR: the effective rank of what tells images apart beside what tells views of one apart (Thilak et al. 2023).

    n images with q augmented views each. The entropy of :func:`rankme`, over the eigenvalues of Sw^-1/2 Sb Sw^-1/2
    (arXiv 2312.04000, sec. 3): Sb is the covariance of the images' means, Sw that of the views about them plus
    ``ridge`` times the identity. Between 1 and min(n - 1, D). Raises ValueError for fewer than 2 images or 2 views.
    """
    n, q, width = views.shape
    if n < 2 or q < 2 or not width:
        raise ValueError(f"LiDAR needs at least 2 images with 2 views each, got views of {tuple(views.shape)}")
    values = views.detach().double()
    means = values.mean(1)
    between = means - means.mean(0)
    within = (values - means[:, None]).flatten(0, 1)
    spread = within.T @ within / (n * q) + ridge * torch.eye(width, dtype=torch.float64, device=values.device)
    # With Sw = L L^T the matrices Sw^-1/2 Sb Sw^-1/2 and L^-1 Sb L^-T have the same eigenvalues.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), between.T, upper=False)
    eigenvalues = torch.linalg.eigvalsh(whitened @ whitened.T / n).clamp(min=0)
    return _effective_rank(eigenvalues, min(n - 1, width))


def alpha_req(values: Float[Tensor, "n D"]) -> float:
    """alpha-ReQ: the exponent at which the sorted eigenvalues of the covariance decay (Agrawal et al. 2022).

    The slope of a straight line through (log i, -log eigenvalue i), each point weighted by 1 / i so that every decade
    counts alike (Stringer et al. 2019). Eigenvalues that are only rounding are left out; with fewer than two others it
    is infinite. Best near 1; larger: a few directions hold all. Raises ValueError for fewer than 2 images.
    """
    if len(values) < 2 or not values.shape[1]:
        raise ValueError(f"alpha-ReQ needs at least 2 images, got a matrix of {tuple(values.shape)}")
    exact = values.detach().double()
    centred = exact - exact.mean(0)
    eigenvalues = torch.linalg.svdvals(centred).square()
    # Features come in float32: what is below the square of its rounding says nothing, of the mean's size least of all.
    noise = (torch.finfo(torch.float32).eps * exact.square().sum().sqrt()).square()
    eigenvalues = eigenvalues[eigenvalues > noise]
    if len(eigenvalues) < 2:
        return float("inf")
    rank = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64, device=values.device)
    x, y, weight = rank.log(), -eigenvalues.log(), 1 / rank
    x, y = (part - (weight * part).sum() / weight.sum() for part in (x, y))
    return float((weight * x * y).sum() / (weight * x * x).sum())


def uniformity(values: Float[Tensor, "n D"], *, t: float = 2.0) -> float:
    """log of the mean of exp(-t |x - y|^2) over pairs of different images, on the unit sphere (Wang and Isola 2020).

    0 where all point one way, and lower the more evenly they are spread. Features of zeros point nowhere and count as
    pointing one way. Raises ValueError for fewer than 2 images.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"uniformity needs at least 2 images, got {n}")
    unit = F.normalize(values.detach().double(), dim=1)
    unit[(unit == 0).all(1), 0] = 1
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    close = (-t * squared).exp()
    return float(((close.sum() - close.diagonal().sum()) / (n * (n - 1))).log())


def alignment(views: Float[Tensor, "n q D"]) -> float:
    """The mean of |x - y|^2 over pairs of views of one image, on the unit sphere (Wang and Isola 2020, alpha 2).

    0 where views do not matter, at most 4. Raises ValueError for fewer than 2 views.
    """
    n, q, _ = views.shape
    if n < 1 or q < 2:
        raise ValueError(f"alignment needs images with at least 2 views each, got views of {tuple(views.shape)}")
    unit = F.normalize(views.detach().double(), dim=2)
    squared = (2 - 2 * unit @ unit.mT).clamp(min=0)
    return float((squared.sum() - squared.diagonal(dim1=1, dim2=2).sum()) / (n * q * (q - 1)))


def variance_shares(tokens: Float[Tensor, "n N D"]) -> tuple[float, float]:
    """The variance of token features over images (at a fixed position) and over positions (of the mean image).

    Both are means over the D features, of population variances, and add up to the variance of all tokens. Features that
    tell positions apart and not images have the second alone. Raises ValueError for an empty tensor.
    """
    if tokens.numel() == 0:
        raise ValueError(f"there is no variance of no tokens, got a tensor of {tuple(tokens.shape)}")
    exact = tokens.detach().double()
    image = exact.mean(0)
    return float((exact - image).square().mean()), float((image - image.mean(0)).square().mean())

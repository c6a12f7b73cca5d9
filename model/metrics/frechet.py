"""Fréchet distance of two sets of features, with its standard error. n samples, d channels.

The distance is that between the Gaussians of the sets' means and covariances (Dowson and Landau, 1982), which
is FID for Inception features (Heusel et al., arXiv 1706.08500). Sums are float64 and are made around a fixed
centre, so that a mean far from zero costs no digits; the sums of parts merge to those of the whole.

Its error follows from influences: by how much the distance would move, to first order and times n, if one
sample counted more. The derivative by a covariance is I - T, with T the optimal map between the Gaussians
(Gelbrich, 1990).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class Moments(NamedTuple):
    """Sums over the features of some samples, around a fixed centre."""

    n: int
    """Number of samples."""
    sum: Float64[Tensor, " d"]
    """Sum of the features, less the centre each."""
    outer: Float64[Tensor, "d d"]
    """Sum of the products of these differences, channel by channel."""


class Transport(NamedTuple):
    """What the Fréchet distance of two sets, a and b, and its derivatives are made of. r is a rank."""

    distance: float
    """Fréchet distance, in squared units of the features."""
    n: int
    """Samples of each set."""
    mean_a: Float64[Tensor, " d"]
    """Mean of set a, less the centre."""
    mean_b: Float64[Tensor, " d"]
    root_a: Float64[Tensor, "d r"]
    """Factor of the map of a on b: the map is `root_a @ root_a.T` where a has variance, and 0 elsewhere."""
    root_b: Float64[Tensor, "d r"]
    trace_a: float
    """Trace of the covariance of a."""
    trace_b: float
    trace_map: float
    """Trace of a map times the covariance that it maps, which is the same for both."""


def no_moments(num_channels: int, device: torch.device | str = "cpu") -> Moments:
    """Return the moments of no sample."""
    channels = torch.zeros(num_channels, dtype=torch.float64, device=device)
    return Moments(n=0, sum=channels, outer=channels.new_zeros(num_channels, num_channels))


def moments(features: Float[Tensor, "n d"], centre: Float64[Tensor, " d"]) -> Moments:
    """Return the moments of a batch of features, of which every sample counts once.

    Any centre is right; one near the mean keeps the most digits. Moments that are merged or compared need the
    same one.
    """
    centred = features.double() - centre
    return Moments(n=len(features), sum=centred.sum(dim=0), outer=centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of the samples of both."""
    return Moments(n=a.n + b.n, sum=a.sum + b.sum, outer=a.outer + b.outer)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return the Fréchet distance of two sets, in squared units of the features; at least 0 but for rounding.

    It is |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) with covariances over n - 1. It has a bias of the
    order d / n: raises ValueError where the sets have unlike numbers of samples, or not more than channels.
    """
    _check_sizes(a, b)
    factor_a = _factor(a)
    factor_b = _factor(b)
    singular = torch.linalg.svdvals(factor_a.vectors.T @ factor_b.vectors)
    return _distance(a, b, factor_a, factor_b, singular)


def transport(a: Moments, b: Moments) -> Transport:
    """Return the distance of two sets and what its influences need; raises what `frechet_distance` raises."""
    _check_sizes(a, b)
    factor_a = _factor(a)
    factor_b = _factor(b)
    left, singular, right = torch.linalg.svd(factor_a.vectors.T @ factor_b.vectors, full_matrices=False)
    return Transport(
        distance=_distance(a, b, factor_a, factor_b, singular),
        n=a.n,
        mean_a=a.sum / a.n,
        mean_b=b.sum / b.n,
        root_a=(factor_a.vectors / factor_a.variances) @ (left * singular.sqrt()),
        root_b=(factor_b.vectors / factor_b.variances) @ (right.T * singular.sqrt()),
        trace_a=factor_a.variances.sum().item(),
        trace_b=factor_b.variances.sum().item(),
        trace_map=singular.sum().item(),
    )


def influences(
    features: Float[Tensor, "B d"],
    references: Float[Tensor, "B d"] | None,
    moments_a: Moments,
    moments_b: Moments,
    centre: Float64[Tensor, " d"],
) -> Float64[Tensor, " B"]:
    """Return the influence of each sample of set a on the Fréchet distance, of mean 0 over the whole set.

    With c the feature less its mean, it is 2 c (m_a - m_b) + c'(I - T)c - tr((I - T) S_a), T the optimal map
    of S_a on S_b. `references` are set b's features of the same samples, such as the originals of
    reconstructions, and add the same with a and b exchanged; None where set b is fixed. The second term
    counts n / (n - 1) times, as covariances are over n - 1: so it is the exact derivative.
    """
    return influences_by(transport(moments_a, moments_b), features, references, centre)


def influences_by(
    maps: Transport,
    features: Float[Tensor, "B d"],
    references: Float[Tensor, "B d"] | None,
    centre: Float64[Tensor, " d"],
) -> Float64[Tensor, " B"]:
    """Return the same as `influences` for one of many batches: the maps are made once for all of them."""
    towards_b = maps.mean_a - maps.mean_b
    centred = features.double() - centre - maps.mean_a
    found = _influences_of_one_set(centred, towards_b, maps.root_a, maps.trace_a - maps.trace_map, maps.n)
    if references is None:
        return found
    centred = references.double() - centre - maps.mean_b
    return found + _influences_of_one_set(
        centred, -towards_b, maps.root_b, maps.trace_b - maps.trace_map, maps.n
    )


def standard_error(influences: Float64[Tensor, " n"]) -> float:
    """Return the standard error of a distance from the influences of all its samples.

    That of the difference of two models on the same samples follows from the differences of their influences.
    """
    return (influences.std() / len(influences) ** 0.5).item()


class _Factor(NamedTuple):
    """Factor of a covariance, S = V V', where it has variance."""

    vectors: Float64[Tensor, "d r"]
    """Orthogonal columns V, each as long as its standard deviation."""
    variances: Float64[Tensor, " r"]
    """Squared lengths of the columns: the eigenvalues of S."""


def _factor(sums: Moments) -> _Factor:
    """Factor a covariance by its eigenvectors, without those that hold nothing but rounding."""
    covariance = (sums.outer - torch.outer(sums.sum, sums.sum / sums.n)) / (sums.n - 1)
    variances, vectors = torch.linalg.eigh(covariance)
    # Rounding is relative to the largest eigenvalue, and to the sums that were subtracted.
    largest = torch.maximum(variances[-1], sums.outer.diagonal().max() / (sums.n - 1))
    is_real = variances > len(variances) * torch.finfo(torch.float64).eps * largest
    kept = variances[is_real]
    return _Factor(vectors=vectors[:, is_real] * kept.sqrt(), variances=kept)


def _distance(
    a: Moments, b: Moments, factor_a: _Factor, factor_b: _Factor, singular: Float64[Tensor, " r"]
) -> float:
    """Return the distance from the singular values of the product of both factors.

    They are the square roots of the eigenvalues of S_a S_b, without the loss of half the digits that roots of
    small eigenvalues bring.
    """
    between_means = (a.sum / a.n - b.sum / b.n).square().sum()
    traces = factor_a.variances.sum() + factor_b.variances.sum()
    return (between_means + traces - 2 * singular.sum()).item()


def _check_sizes(a: Moments, b: Moments) -> None:
    num_channels = len(a.sum)
    if len(b.sum) != num_channels:
        raise ValueError(f"the sets have {num_channels} and {len(b.sum)} channels: take one feature network")
    if a.n != b.n:
        raise ValueError(
            f"the sets have {a.n} and {b.n} samples: the Fréchet distance is biased by their number, "
            "so take as many of each"
        )
    if a.n <= num_channels:
        raise ValueError(
            f"{a.n} samples of {num_channels} channels: the Fréchet distance needs more samples than channels"
        )


def _influences_of_one_set(
    centred: Float64[Tensor, "B d"],
    towards: Float64[Tensor, " d"],
    root: Float64[Tensor, "d r"],
    trace: float,
    n: int,
) -> Float64[Tensor, " B"]:
    """Return 2 c (m - m_r) + c'(I - T)c - tr((I - T) S), for features less their mean."""
    quadratic = centred.square().sum(dim=1) - (centred @ root).square().sum(dim=1)
    # Covariances are over n - 1, so a sample has a little more than an n-th of theirs.
    return 2 * centred @ towards + quadratic * n / (n - 1) - trace

"""Fréchet distances against float64 numpy and torch-fidelity, and their errors against repeated draws."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from dualtoken.model.metrics.frechet import (
    Moments,
    frechet_distance,
    influences,
    influences_by,
    merge,
    moments,
    no_moments,
    standard_error,
    transport,
)

D = 16
N = 600


def draw(seed: int, num_samples: int = N, num_channels: int = D, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_channels, num_channels, generator=generator, dtype=torch.float64)
    samples = torch.randn(num_samples, num_channels, generator=generator, dtype=torch.float64)
    return samples @ mixing + shift


def of(features: Tensor, centre: Tensor | None = None) -> Moments:
    if centre is None:
        centre = torch.zeros(features.shape[1], dtype=torch.float64)
    return moments(features, centre)


def numpy_distance(
    a: Tensor, b: Tensor, weights: Tensor | None = None, weights_b: Tensor | None = None
) -> float:
    """Compute it by eigenvalues of the product of covariances, which is not symmetric.

    Samples may have weights, whose sum is their number.
    """
    mean_a, covariance_a = numpy_moments(a, weights)
    mean_b, covariance_b = numpy_moments(b, weights_b)
    difference = mean_a - mean_b
    roots = np.real(np.sqrt(np.linalg.eigvals(covariance_a @ covariance_b).astype(complex))).sum()
    return float(difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * roots)


def numpy_moments(features: Tensor, weights: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    values = features.numpy()
    counts = np.ones(len(values)) if weights is None else weights.numpy()
    mean = counts @ values / len(values)
    centred = values - mean
    return mean, (centred * counts[:, None]).T @ centred / (len(values) - 1)


def test_the_distance_is_that_of_float64_numpy() -> None:
    for seed in range(3):
        a = draw(seed)
        b = draw(seed + 10, shift=0.3)
        assert frechet_distance(of(a), of(b)) == pytest.approx(numpy_distance(a, b), rel=1e-9)


def test_the_distance_is_that_of_torch_fidelity() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_fid", reason="torch-fidelity is not installed")
    a = draw(0)
    b = draw(1, shift=0.3)
    statistics = [fidelity.fid_features_to_statistics(features) for features in (a, b)]
    expected = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(of(a), of(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")  # of SciPy's sqrtm
def test_the_distance_is_that_of_clean_fid() -> None:
    clean_fid = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed")
    a = draw(0)
    b = draw(1, shift=0.3)
    statistics = [(x.numpy().mean(axis=0), np.cov(x.numpy(), rowvar=False)) for x in (a, b)]
    expected = clean_fid.frechet_distance(*statistics[0], *statistics[1])
    assert frechet_distance(of(a), of(b)) == pytest.approx(expected, rel=1e-6)


def test_the_distance_of_one_channel_is_that_of_the_formula() -> None:
    a = torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64)
    b = torch.tensor([[10.0], [11.0], [12.0]], dtype=torch.float64)
    assert frechet_distance(of(a), of(b)) == pytest.approx(9**2 + (2 - 1) ** 2, rel=1e-14)


def test_a_centre_near_the_mean_keeps_the_digits_of_features_far_from_zero() -> None:
    far = 1e6
    a = draw(0) + far
    b = draw(1) + far
    expected = numpy_distance(draw(0), draw(1))
    centre = torch.full((D,), far, dtype=torch.float64)
    assert frechet_distance(of(a, centre), of(b, centre)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(of(a), of(b)) != pytest.approx(expected, rel=1e-7)


def assert_equal_moments(a: Moments, b: Moments) -> None:
    assert a.n == b.n
    torch.testing.assert_close(a.sum, b.sum, rtol=1e-12, atol=1e-12 * N)
    torch.testing.assert_close(a.outer, b.outer, rtol=1e-12, atol=1e-12 * N)


def test_merging_has_an_identity_and_is_associative() -> None:
    a = of(draw(0))
    b = of(draw(1))
    c = of(draw(2))
    for merged in (merge(a, no_moments(D)), merge(no_moments(D), a), merge(a, of(draw(0)[:0]))):
        assert merged.n == a.n
        assert torch.equal(merged.sum, a.sum)
        assert torch.equal(merged.outer, a.outer)
    assert_equal_moments(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_equal_moments(merge(a, b), merge(b, a))


def test_moments_of_parts_in_any_order_are_those_of_the_whole() -> None:
    features = draw(3)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for rows in (torch.arange(N), order):
        merged = no_moments(D)
        for first, last in pairwise((0, 1, 7, 300, N)):
            merged = merge(merged, of(features[rows[first:last]]))
        assert_equal_moments(merged, of(features))
        reference = of(draw(4))
        expected = frechet_distance(of(features), reference)
        assert frechet_distance(merged, reference) == pytest.approx(expected, rel=1e-11)


def test_features_of_half_precision_are_summed_in_float64() -> None:
    features = draw(0).half()
    assert_equal_moments(of(features), of(features.double()))


def test_too_few_or_unlike_numbers_of_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="600 and 599 samples"):
        frechet_distance(of(draw(0)), of(draw(1, 599)))
    with pytest.raises(ValueError, match="16 samples of 16 channels"):
        frechet_distance(of(draw(0, D)), of(draw(1, D)))
    with pytest.raises(ValueError, match="16 and 15 channels"):
        frechet_distance(of(draw(0)), of(draw(1, num_channels=15)))
    assert frechet_distance(of(draw(0, D + 1)), of(draw(1, D + 1))) > 0


def numpy_influences(a: Tensor, b: Tensor, *, is_paired: bool) -> Tensor:
    """Differentiate numpy's distance by the weight of each sample, in both sets where they are paired."""
    step = 1e-4
    found = []
    for row in range(len(a)):
        ends = []
        for change in (step, -step):
            weights = torch.ones(len(a), dtype=torch.float64)
            weights[row] += change
            weights *= len(a) / weights.sum()
            ends.append(numpy_distance(a, b, weights, weights if is_paired else None))
        found.append((ends[0] - ends[1]) / (2 * step) * len(a))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("is_paired", [False, True])
def test_an_influence_is_the_derivative_by_the_weight_of_the_sample(*, is_paired: bool) -> None:
    a = draw(0, 80, 4)
    b = draw(1, 80, 4, shift=0.5)
    centre = torch.full((4,), 0.25, dtype=torch.float64)
    references = b if is_paired else None
    found = influences(a, references, of(a, centre), of(b, centre), centre)
    torch.testing.assert_close(found, numpy_influences(a, b, is_paired=is_paired), rtol=1e-6, atol=1e-6)
    assert found.sum().item() == pytest.approx(0, abs=1e-11 * found.std().item())


def test_influences_of_batches_are_those_of_the_whole() -> None:
    a = draw(0)
    b = draw(1)
    centre = torch.zeros(D, dtype=torch.float64)
    whole = influences(a, b, of(a), of(b), centre)
    maps = transport(of(a), of(b))
    parts = [influences_by(maps, a[rows], b[rows], centre) for rows in (slice(0, 7), slice(7, N))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


class Drawn:
    """Distances of one draw, with the standard errors that its influences give."""

    def __init__(self, seed: int, reference: Tensor, mixing: Tensor) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = reference.shape
        originals = torch.randn(shape, generator=generator, dtype=torch.float64) @ mixing
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        blurred = 0.8 * originals + 0.1 * noise + 0.1
        other = 0.75 * originals + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.1
        centre = torch.zeros(shape[1], dtype=torch.float64)
        fixed = influences(blurred, None, of(blurred), of(reference), centre)
        paired = influences(blurred, originals, of(blurred), of(originals), centre)
        paired_other = influences(other, originals, of(other), of(originals), centre)
        to_blurred = frechet_distance(of(blurred), of(originals))
        to_other = frechet_distance(of(other), of(originals))
        self.values = [frechet_distance(of(blurred), of(reference)), to_blurred, to_other - to_blurred]
        self.errors = [standard_error(fixed), standard_error(paired), standard_error(paired_other - paired)]


def test_standard_errors_are_those_of_repeated_draws_single_paired_and_of_differences() -> None:
    mixing = torch.diag(torch.linspace(0.5, 1.5, 6, dtype=torch.float64))
    reference = torch.randn(400, 6, generator=torch.Generator().manual_seed(99), dtype=torch.float64) @ mixing
    draws = [Drawn(seed, reference, mixing) for seed in range(500)]
    spread = np.std([draw.values for draw in draws], axis=0, ddof=1)
    estimated = np.mean([draw.errors for draw in draws], axis=0)
    assert estimated == pytest.approx(spread, rel=0.1)


def test_equal_sets_have_no_distance_and_no_influences() -> None:
    a = draw(0)
    scale = a.square().sum(dim=1).mean().item()
    assert frechet_distance(of(a), of(a)) == pytest.approx(0, abs=1e-13 * scale)
    found = influences(a, a, of(a), of(a), torch.zeros(D, dtype=torch.float64))
    assert found.abs().max().item() < 1e-11 * scale


def test_features_of_low_rank_have_the_distance_and_influences_of_their_coordinates() -> None:
    a = draw(0, num_channels=3)
    b = draw(1, num_channels=3, shift=1.0)
    basis = torch.linalg.qr(draw(2, D, D)).Q[:, :3]
    found = transport(of(a @ basis.T), of(b @ basis.T))
    assert found.root_a.shape == (D, 3)
    assert found.distance == pytest.approx(numpy_distance(a, b), rel=1e-12)
    centre = torch.zeros(D, dtype=torch.float64)
    torch.testing.assert_close(
        influences(a @ basis.T, b @ basis.T, of(a @ basis.T), of(b @ basis.T), centre),
        influences(a, b, of(a), of(b), centre[:3]),
        rtol=1e-9,
        atol=1e-9,
    )


def test_features_of_crossed_subspaces_share_no_variance() -> None:
    a = torch.zeros(N, D, dtype=torch.float64)
    b = a.clone()
    a[:, :5] = draw(0, num_channels=5)
    b[:, 5:7] = draw(1, num_channels=2)
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.var(dim=0).sum() + b.var(dim=0).sum()
    assert frechet_distance(of(a), of(b)) == pytest.approx(expected.item(), rel=1e-12)
    assert influences(a, b, of(a), of(b), a[0] * 0).isfinite().all()


def test_constant_features_have_the_other_set_s_variance_and_no_influence() -> None:
    constant = torch.full((N, D), 0.1, dtype=torch.float64)
    b = draw(1)
    expected = (b.mean(dim=0) - 0.1).square().sum() + b.var(dim=0).sum()
    centre = torch.full((D,), 0.3, dtype=torch.float64)
    sums = of(constant, centre)
    assert frechet_distance(sums, of(b, centre)) == pytest.approx(expected.item(), rel=1e-12)
    assert influences(constant, None, sums, of(b, centre), centre).abs().max().item() < 1e-11
    assert frechet_distance(sums, sums) == pytest.approx(0, abs=1e-13)

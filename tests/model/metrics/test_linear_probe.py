"""The probe's minimum is that of scipy, for any order of the samples and any scale of the features."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from dualtoken.model.metrics.linear_probe import fit_linear_probe, is_probed_class

CLASSES = 3
CHANNELS = 5
L2 = 1e-2


def samples(seed: int, num_samples: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (num_samples,), generator=generator)
    centres = torch.randn(CLASSES, CHANNELS, generator=torch.Generator().manual_seed(9))
    features = centres[labels] + torch.randn(num_samples, CHANNELS, generator=generator)
    return features, labels


def scipy_probe(features: Tensor, labels: Tensor) -> tuple[float, np.ndarray, np.ndarray]:
    """Return loss, weights and bias of standardised features."""
    raw = features.double().numpy()
    inputs = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    rows = np.arange(len(labels))

    def loss(flat: np.ndarray) -> float:
        weights = flat[: CHANNELS * CLASSES].reshape(CHANNELS, CLASSES)
        logits = inputs @ weights + flat[CHANNELS * CLASSES :]
        likelihoods = logits[rows, labels.numpy()] - logsumexp(logits, axis=1)
        return float(L2 / 2 * (weights**2).sum() - likelihoods.mean())

    best = minimize(loss, np.zeros((CHANNELS + 1) * CLASSES), method="BFGS", options={"gtol": 1e-7})
    weights = best.x[: CHANNELS * CLASSES].reshape(CHANNELS, CLASSES)
    return best.fun, weights, inputs @ weights + best.x[CHANNELS * CLASSES :]


def test_the_minimum_is_that_of_scipy() -> None:
    features, labels = samples(0)
    loss, _, logits = scipy_probe(features, labels)
    probe = fit_linear_probe(features, labels, CLASSES, L2)
    assert probe.loss == pytest.approx(loss, abs=1e-10)
    torch.testing.assert_close(
        probe.scores(features).softmax(dim=1), torch.from_numpy(logits).softmax(dim=1), rtol=0, atol=1e-5
    )
    is_right = is_probed_class(probe, features, labels)
    assert is_right.tolist() == (torch.from_numpy(logits).argmax(dim=1) == labels).tolist()
    assert is_right.double().mean() > 0.6
    assert is_probed_class(probe, features, labels, CLASSES).all()


def test_the_same_samples_give_the_same_bits_and_in_another_order_the_same_minimum() -> None:
    features, labels = samples(0)
    probe = fit_linear_probe(features, labels, CLASSES, L2)
    again = fit_linear_probe(features, labels, CLASSES, L2)
    assert torch.equal(again.weights, probe.weights)
    assert torch.equal(again.bias, probe.bias)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    other = fit_linear_probe(features[order], labels[order], CLASSES, L2)
    torch.testing.assert_close(other.weights, probe.weights, rtol=0, atol=1e-5)
    assert other.loss == pytest.approx(probe.loss, abs=1e-12)


def test_scales_shifts_and_constant_channels_change_no_score() -> None:
    features, labels = samples(0)
    probe = fit_linear_probe(features, labels, CLASSES, L2)
    # The means of some of these round, so that their channels are not exactly 0 without the mean.
    constants = (torch.arange(1, 30, dtype=torch.float64) / 10).expand(len(features), -1)
    changed = torch.cat((features.double() * 1000 + 77, constants), dim=1)
    other = fit_linear_probe(changed, labels, CLASSES, L2)
    assert other.weights[CHANNELS:].count_nonzero() == 0
    torch.testing.assert_close(other.scores(changed), probe.scores(features), rtol=0, atol=1e-2)


def test_classes_that_can_be_separated_have_a_minimum() -> None:
    features = torch.eye(CLASSES).repeat(4, 1)
    labels = torch.arange(CLASSES).repeat(4)
    probe = fit_linear_probe(features, labels, CLASSES, 1e-6)
    assert is_probed_class(probe, features, labels).all()


def test_a_probe_without_penalty_or_minimum_is_refused() -> None:
    features, labels = samples(0)
    with pytest.raises(ValueError, match=r"l2=0\.0: without a penalty"):
        fit_linear_probe(features, labels, CLASSES, 0.0)
    with pytest.raises(ValueError, match=r"after 2 steps with l2=0\.01: raise l2 or max_steps"):
        fit_linear_probe(features, labels, CLASSES, L2, max_steps=2)
    features[3, 1] = math.nan
    with pytest.raises(ValueError, match="gradient of nan after 1000 steps"):
        fit_linear_probe(features, labels, CLASSES, L2)

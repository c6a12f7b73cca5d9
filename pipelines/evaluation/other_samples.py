"""Pairs samples with others, for the controls that shuffle images or captions."""

import numpy as np


def other_samples(num_samples: int, seed: int = 0) -> list[int]:
    """Return another sample for each, each of them once, at random: neighbours in a corpus are often alike.

    Raises ValueError for fewer than two samples.
    """
    if num_samples < 2:
        raise ValueError(f"{num_samples} samples cannot be shuffled: give two or more")
    order = np.random.default_rng(seed).permutation(num_samples)
    other = np.empty_like(order)
    other[order] = np.roll(order, -1)
    return other.tolist()

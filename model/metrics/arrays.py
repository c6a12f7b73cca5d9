"""PSNR and perplexity of numpy arrays: the two metrics that are also computed where torch is not loaded.

Importing torch takes seconds, more than all audits of a short run. `reconstruction.psnr_per_image` and
`codebook.codebook_use` compute the same on batches of tensors. They add numbers in another order and
precision, so the last digits differ, and records store all digits: neither can take the place of the other.
tests/model/metrics compares them.
"""

from typing import Any

import numpy as np

Levels = np.ndarray[Any, np.dtype[np.uint8]]
"""Pixels of an image, levels 0 to 255."""
MAX_PSNR = 100.0
"""PSNR of an image that comes back exactly, dB; the ratio itself has no bound."""


def psnr(image: Levels, reference: Levels) -> float:
    """Return the peak signal-to-noise ratio of one image, dB, at most `MAX_PSNR`."""
    error = float(np.square(image.astype(np.float64) - reference).mean())
    if error == 0:
        return MAX_PSNR
    return min(MAX_PSNR, 10 * float(np.log10(255**2 / error)))


def perplexity(counts: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Return 2 to the entropy in bits of how often each code occurs.

    It is 1 to the number of codes, and 1 where no code occurs.
    """
    shares = counts / max(counts.sum(), 1)
    logarithms = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    return float(np.exp(-(shares * logarithms).sum()))

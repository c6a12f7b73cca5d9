"""Samples codes from logits: temperature, top-k, top-p, in float32, from one number of noise a code.

R rows, K codes.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Sampling(NamedTuple):
    """Settings of sampling."""

    temperature: float = 1.0
    """Divisor of the logits; 0 takes the likeliest code."""
    top_k: int = 0
    """Likeliest codes to choose among; 0: all."""
    top_p: float = 1.0
    """Probability of the likeliest codes to choose among: the fewest that have so much together."""

    def check(self) -> None:
        """Raise ValueError for settings out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: give 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: give 1 or more, or 0 for all codes")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a probability over 0, up to 1")


def check_guidance_scale(scale: float) -> None:
    """Raise ValueError for a scale out of range."""
    if not 0 <= scale < float("inf"):
        raise ValueError(f"guidance_scale={scale}: give 0 or more, 1 for none")


def check_unread_share(share: float) -> None:
    """Raise ValueError for a share out of range."""
    if not 0 <= share <= 1:
        raise ValueError(f"unread_share={share}: give a share from 0 to 1")


ALL_CODES = Sampling()
"""Sampling from the model's own probabilities."""


def sample(logits: Float[Tensor, "R K"], noise: Float[Tensor, "R"], settings: Sampling) -> Int[Tensor, "R"]:
    """Return a code for each row, by inverting the distribution at `noise`, which is in [0, 1).

    Rows do not depend on each other. No size depends on values, so that a GPU can run it as a graph.
    """
    logits = logits.float()
    if settings.temperature == 0:
        return logits.argmax(dim=1)
    scaled = logits / settings.temperature
    if not settings.top_k and settings.top_p == 1:
        return _invert(scaled.softmax(dim=1), noise)
    num_kept = min(settings.top_k or scaled.shape[1], scaled.shape[1])
    top, codes = scaled.topk(num_kept, dim=1)
    probabilities = top.softmax(dim=1)
    if settings.top_p < 1:
        likelier = probabilities.cumsum(dim=1) - probabilities
        # The likeliest code always stays.
        probabilities = probabilities.masked_fill(likelier >= settings.top_p, 0)
    return codes.gather(1, _invert(probabilities, noise)[:, None]).squeeze(1)


def _invert(probabilities: Float[Tensor, "R K"], noise: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Return the first place at which the probabilities so far exceed the noise's share of all."""
    sums = probabilities.cumsum(dim=1)
    # Below the total by rounding at most, and then the last place that has a probability is taken.
    wanted = noise[:, None] * sums[:, -1:]
    place = (sums <= wanted).sum(dim=1)
    last = (probabilities > 0).long().cumsum(dim=1).argmax(dim=1)
    return torch.minimum(place, last)


def guided(
    conditional: Float[Tensor, "*S K"], unconditional: Float[Tensor, "*S K"], scale: float
) -> Float[Tensor, "*S K"]:
    """Return logits of classifier-free guidance: those of the condition at scale 1."""
    return unconditional + scale * (conditional - unconditional)


def image_noise(
    seed: int, image: int, num_positions: int, num_streams: int, depth: int, *, shared: bool = False
) -> Float[Tensor, "N S D"]:
    """Return the noise of one image, which depends on the seed and the image's number alone.

    If it is `shared`, all positions have the noise of the first one.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, image))
    noise = torch.rand(num_positions, num_streams, depth, generator=generator)
    return noise[:1].expand_as(noise) if shared else noise


def unread_positions(seed: int, image: int, num_positions: int, share: float) -> Bool[Tensor, "N"]:
    """Return the positions of one image whose codes are not to be read, each with the probability `share`.

    They depend on the seed and the image's number alone.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, image, 1))
    return torch.rand(num_positions, generator=generator) < share


def _mixed(seed: int, *numbers: int) -> int:
    """Mix numbers into a seed; a CPU's generator takes the lowest 32 bits of one alone."""
    (mixed,) = np.random.SeedSequence([seed % 2**64, *numbers]).generate_state(1)
    return int(mixed)

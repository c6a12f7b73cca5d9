"""Random numbers of fresh weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw weights that are made in the block from a seed, and leave the process's own random numbers alone.

    It touches the CPU's generator only: with devices, `fork_rng` would start every GPU that the process sees.
    """
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield

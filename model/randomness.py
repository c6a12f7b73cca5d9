"""Random numbers of fresh weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw weights that are made in the block from a seed, and leave the process's own random numbers alone.

    It touches the CPU's generator only: `torch.random.fork_rng` would start every GPU that the process sees.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)

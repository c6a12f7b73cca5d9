"""Settings of the whole process that a training changes, put back when it ends: its caller has its own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dualtoken.infra.log_levels import at_least
from dualtoken.pipelines.inference.networks import set_num_threads


@contextmanager
def process_settings(num_threads: int | None) -> Iterator[None]:
    """Keep the root logger, the number of CPU threads and PyTorch's random numbers from the block's changes.

    In the block, open_clip's reports of each of its steps to the root logger are left out, and PyTorch has
    `num_threads`, or its own number where that is None.
    """
    threads_before = torch.get_num_threads()
    if num_threads is not None:
        set_num_threads(num_threads)
    try:
        with at_least(logging.WARNING, ""), torch.random.fork_rng(devices=()):
            yield
    finally:
        torch.set_num_threads(threads_before)

"""Settings of the whole process that a training changes, put back when it ends: its caller has its own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dualtoken.infra.log_levels import at_least
from dualtoken.model.precision import forbid_tf32
from dualtoken.pipelines.inference.networks import set_num_threads

_BUILDERS = "TORCHINDUCTOR_COMPILE_THREADS"
"""Environment variable that PyTorch's compiler reads at its first use."""


@contextmanager
def process_settings(num_threads: int | None) -> Iterator[None]:
    """Keep the root logger, the number of CPU threads and PyTorch's random numbers from the block's changes.

    In the block, open_clip's reports of each of its steps to the root logger are left out, and PyTorch has
    `num_threads`. None says that a GPU computes: PyTorch then has one thread, since others would spin beside
    the one that decodes images; TF32 is off, and stays off; and torch.compile builds in as many processes as
    PyTorch had threads, which Ray sets to a worker's CPUs, in place of one for each CPU of the machine.
    """
    threads_before = torch.get_num_threads()
    builders_before = os.environ.get(_BUILDERS)
    if num_threads is None:
        forbid_tf32()
        os.environ.setdefault(_BUILDERS, str(threads_before))
    set_num_threads(num_threads or 1)
    try:
        with at_least(logging.WARNING, ""), torch.random.fork_rng(devices=()):
            yield
    finally:
        torch.set_num_threads(threads_before)
        if builders_before is None:
            os.environ.pop(_BUILDERS, None)

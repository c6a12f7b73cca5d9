"""Wait policy of OpenMP's threads, on which PyTorch's CPU kernels run."""

import os


def wait_passively() -> None:
    """Let OpenMP's idle threads sleep; to be called before torch is imported, and inherited by Ray's workers.

    By default they spin, which starves a machine that has other work: a training step of 1.7 s took 13.5 s
    beside one busy process on 2 cores (Xeon, 2026-11-24). A value of OMP_WAIT_POLICY that is set already
    stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

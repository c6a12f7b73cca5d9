"""Wait policy of OpenMP's threads, on which PyTorch's CPU kernels run."""

import os

_SPINS = 20_000
"""Rounds that an idle thread of GNU's OpenMP spins before it sleeps, some 40 us: products of small matrices
follow one another sooner than a thread wakes up."""


def wait_briefly() -> None:
    """Let OpenMP's idle threads sleep soon; to be called before torch is imported.

    Ray's workers inherit it. By default threads spin for milliseconds, which starves a machine that has
    other work: a training step of 1.7 s took 13.5 s beside one busy process on 2 cores (Xeon, 2026-11-24).
    Where they sleep at once, small steps pay for waking them: 0.245 s in place of 0.158 s (NOTES.md,
    2026-11-29). Values of OMP_WAIT_POLICY and GOMP_SPINCOUNT that are set already stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

"""The recipe's `reader` key: how the trainings of teacher and tokenizer read their images."""

from typing import Annotated, Literal

from pydantic import Field

from dualtoken.model.config.base import (
    Config,
    PositiveInt,
    in_fingerprint_unless_default,
    not_in_fingerprint,
)

THREADS_BESIDE_GPU = 8
"""Decoding threads of a worker with a GPU, at most one for each of its CPUs."""


class ReaderConfig(Config):
    """Reading of image shards by the trainings of teacher and tokenizer."""

    shuffle_shards: PositiveInt = in_fingerprint_unless_default(default=8)
    """Window of the shuffle, in shards: samples are shuffled among so many shards at a time, which come in a
    seeded order.

    Few make a training of remote shards begin soon, and need a small cache; many mix better.
    """
    decode_threads: PositiveInt | None = not_in_fingerprint(default=None)
    """Threads of a worker that read and decode ahead of its training.

    By default one on a CPU, and beside a GPU one for each of the worker's CPUs, at most 8.
    """
    cache_gb: Annotated[float, Field(gt=0)] = not_in_fingerprint(default=100.0)
    """Size of the copies of remote shards, and of the tables of rows, that a machine keeps below TMPDIR, GB.

    Two windows of shards should fit into it.
    """
    check: Literal["first_touch", "never"] = not_in_fingerprint(default="first_touch")
    """Moment at which a shard's checksum is taken.

    Before its first sample is read, or `never`, such as after `dualtoken verify`.
    """
    on_damage: Literal["raise", "quarantine"] = not_in_fingerprint(default="quarantine")
    """Action on a damaged shard, once it was fetched again where it is remote.

    End the training, or take other samples in place of its own and note it in `logs/damaged/`.
    """

    def threads(self, *, cpus: int, beside_gpu: bool) -> int:
        """Return the decoding threads of a worker with so many CPUs."""
        if self.decode_threads is not None:
            return self.decode_threads
        if beside_gpu:
            return min(cpus, THREADS_BESIDE_GPU)
        return 1

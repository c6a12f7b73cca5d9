"""Training of a recipe's tokenizer, with workers and checkpoints; imports neither torch nor ray."""

from typing import Annotated

from pydantic import Field, model_validator

from dualtoken.model.config.base import Config, PositiveInt, not_in_fingerprint
from dualtoken.model.config.training import TrainingConfig


class DataParallelConfig(Config):
    """Workers that train together, each on its share of the batch."""

    num_workers: PositiveInt = not_in_fingerprint(default=1)
    """Data-parallel processes; the batch is shared among them, and results agree to rounding."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: PositiveInt = not_in_fingerprint(default=1)
    """CPU cores of a worker, and its number of threads; another number gives other last bits, and is the same
    training all the same: what a machine has costs no new teacher and no new tokenizer."""


# The last base comes first: pydantic collects fields from the bases in reversed MRO order. Fingerprints and
# the report depend on the order: workers, then the training. tests/pipelines/config/test_train.py pins it.
class TrainConfig(TrainingConfig, DataParallelConfig):
    """Training of the dual tokenizer with Ray Train."""

    checkpoint_every: PositiveInt = not_in_fingerprint(default=100)
    """Steps between checkpoints."""
    log_every: PositiveInt = not_in_fingerprint(default=10)
    """Steps between log lines."""
    max_failures: Annotated[int, Field(ge=0)] = not_in_fingerprint(default=2)
    """Restarts of the workers before the run fails."""

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> "TrainConfig":
        parts = self.num_workers * self.accumulate_steps
        if self.batch_size % parts == 0:
            return self
        if self.accumulate_steps > 1:
            raise ValueError(
                f"batch_size={self.batch_size} is no multiple of num_workers={self.num_workers} times "
                f"accumulate_steps={self.accumulate_steps}: make it one of {parts}"
            )
        raise ValueError(
            f"batch_size={self.batch_size} is no multiple of num_workers={self.num_workers}: "
            "change one of them"
        )

    @model_validator(mode="after")
    def _channels_last_on_gpus(self) -> "TrainConfig":
        if self.memory_format == "channels_last" and not self.use_gpu:
            raise ValueError(
                "memory_format=channels_last is no faster on a CPU: "
                "set use_gpu=true or memory_format=contiguous"
            )
        return self

"""Training of a recipe's tokenizer, with workers and checkpoints; imports neither torch nor ray."""

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from dualtoken.model.config.base import Config, PositiveInt, not_in_fingerprint
from dualtoken.model.config.training import TrainingConfig
from dualtoken.pipelines.config.engine import EngineConfig


class DataParallelConfig(Config):
    """Workers that train together, each on its share of the batch.

    A base of configurations that have `batch_size` and `accumulate_steps`.
    """

    if TYPE_CHECKING:
        batch_size: int
        accumulate_steps: int

    num_workers: PositiveInt = not_in_fingerprint(default=1)
    """Data-parallel processes; the batch is shared among them, and results agree to rounding."""
    min_workers: PositiveInt | None = not_in_fingerprint(default=None)
    """Fewest workers that go on where a cluster has not room for all, and more join as it grows; by default
    `num_workers`."""
    parallel: Literal["ddp", "fsdp2"] = not_in_fingerprint(default="ddp")
    """`ddp` gives each worker the whole model; `fsdp2` shards weights and optimiser over the workers. Results
    agree to rounding."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: PositiveInt = not_in_fingerprint(default=1)
    """CPU cores of a worker, and its number of threads; another number gives other last bits, and is the same
    training all the same: what a machine has costs no new teacher and no new tokenizer."""

    @model_validator(mode="after")
    def _workers_share_the_batch(self) -> "DataParallelConfig":
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
    def _fewest_workers_are_fewer(self) -> "DataParallelConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers={self.min_workers} is over num_workers={self.num_workers}: lower it, "
                "or raise num_workers"
            )
        return self

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Numbers of workers that can share the batch: `num_workers`, and fewer down to `min_workers`."""
        sizes: list[int] = []
        for size in range(self.min_workers or self.num_workers, self.num_workers + 1):
            if self.batch_size % (size * self.accumulate_steps) == 0:
                sizes.append(size)
        return tuple(sizes)


# The last base comes first: pydantic collects fields from the bases in reversed MRO order. Fingerprints and
# the report depend on the order: workers, then the training. tests/pipelines/config/test_train.py pins it.
class TrainConfig(TrainingConfig, DataParallelConfig, EngineConfig):
    """Training of the dual tokenizer with Ray Train."""

    @model_validator(mode="after")
    def _no_gan_where_layers_are_sharded(self) -> "TrainConfig":
        if self.parallel == "fsdp2" and self.gan:
            raise ValueError(
                "parallel=fsdp2 shards the decoder's last layer, whose gradients weigh the gan: "
                "set parallel=ddp or gan=null"
            )
        return self

    @model_validator(mode="after")
    def _channels_last_on_gpus(self) -> "TrainConfig":
        if self.memory_format == "channels_last" and not self.use_gpu:
            raise ValueError(
                "memory_format=channels_last is no faster on a CPU: "
                "set use_gpu=true or memory_format=contiguous"
            )
        return self

"""The recipe's `pretokenize` key: how image shards become token shards."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dualtoken.model.config.base import Config, PositiveInt, in_fingerprint_unless_default, not_in_fingerprint
from dualtoken.pipelines.config.corpora import Name
from dualtoken.pipelines.config.crops import MAX_VARIANTS, WHOLE_IMAGE, AnyCrops

DECODE_THREADS_PER_GPU = 4
"""Of a worker that has one, to read and decode images."""


def _fingerprint(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str) or len(value) != 12 or set(value) - set("0123456789abcdef"):
        raise ValueError(
            f"{value!r} is no fingerprint: give, in quotes, the 12 hexadecimal digits that `dualtoken plan` shows"
        )
    return value


Fingerprint = Annotated[str, BeforeValidator(_fingerprint)]
"""Names a stage's folder."""


class PretokenizeConfig(Config):
    """Corpora to token shards."""

    precision: Literal["float32", "bfloat16"] = in_fingerprint_unless_default(default="float32")
    """Of the tower; codes are searched for in float32. bfloat16 is faster where hardware has it, and changes some codes."""
    batch_size: PositiveInt = 64
    """Images encoded at once; halved where the device's memory does not hold them."""
    decode_threads: int | None = not_in_fingerprint(default=None, ge=0)
    """Of one worker, to read and decode batches while one is encoded; 0: in turn. By default 4 beside a GPU, 0 on a CPU, busy as it is.

    A worker with a GPU asks its cluster for one CPU more than these.
    """
    crops: Annotated[tuple[AnyCrops, ...], Field(min_length=1)] = WHOLE_IMAGE
    """What each image gives: a row of tokens for each square, in this order; their boxes stand beside the captions."""
    captions_of: dict[Name, Fingerprint] = in_fingerprint_unless_default(default={})
    """By corpus, a finished token dataset of the same decision and crops: codes alone are written, beside its captions."""
    audit_rows: int = not_in_fingerprint(default=4, ge=0)
    """Of a shard, chosen by chance: decoded again from their stored codes, and compared with what was encoded."""
    min_psnr: float | None = not_in_fingerprint(default=None, ge=0)
    """dB that a shard's audited rows must have in the mean; a lower one is an alarm, be all other shards as bad."""
    on_alarm: Literal["report", "stop"] = not_in_fingerprint(default="report")
    """When a shard's codes collapse, drift from the dataset's or are under `min_psnr`: say so, or also end the run, unfinished."""

    def threads(self, *, beside_gpu: bool) -> int:
        """Return the threads of a worker that read and decode ahead."""
        return (
            (DECODE_THREADS_PER_GPU if beside_gpu else 0)
            if self.decode_threads is None
            else self.decode_threads
        )

    def cpus(self, gpus: float) -> int:
        """Return the CPUs that a worker with so many GPUs keeps busy; without one, its threads share the encoder's."""
        return 1 + self.threads(beside_gpu=True) if gpus else 1

    @property
    def num_variants(self) -> int:
        """Rows of tokens of an image."""
        return sum(crops.count * (1 + crops.flip) for crops in self.crops)

    @model_validator(mode="after")
    def _few_variants(self) -> "PretokenizeConfig":
        if self.num_variants > MAX_VARIANTS:
            raise ValueError(
                f"crops give {self.num_variants} rows of tokens an image, at most {MAX_VARIANTS}: take some out"
            )
        return self

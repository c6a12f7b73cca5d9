"""The recipe's `pretokenize` key: how image shards become token shards."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dualtoken.model.config.base import (
    Config,
    PositiveInt,
    Precision,
    in_fingerprint_unless_default,
    not_in_fingerprint,
)
from dualtoken.pipelines.config.corpora import Name
from dualtoken.pipelines.config.crops import MAX_VARIANTS, WHOLE_IMAGE, AnyCrops

DECODE_THREADS_PER_GPU = 4
"""Default number of threads that read and decode images, of a worker with a GPU."""


def _require_fingerprint(value: Any) -> str:  # noqa: ANN401
    # Before pydantic's own check, whose message would not say what a fingerprint is.
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{12}", value):
        raise ValueError(
            f"{value!r} is no fingerprint: give the 12 hexadecimal digits that `dualtoken plan` shows"
        )
    return value


Fingerprint = Annotated[str, BeforeValidator(_require_fingerprint)]
"""Name of a stage's folder: 12 hexadecimal digits."""


class PretokenizeConfig(Config):
    """Encoding of corpora into token shards."""

    precision: Precision = in_fingerprint_unless_default(default="float32")
    """Precision of the tower; codes are searched for in float32.

    bfloat16 is faster where hardware has it, and changes some codes.
    """
    batch_size: PositiveInt = 64
    """Images encoded at once; halved where the device's memory does not hold them."""
    decode_threads: int | None = not_in_fingerprint(default=None, ge=0)
    """Threads of one worker that read and decode batches while one is encoded; 0: in turn.

    By default 4 beside a GPU and 0 on a CPU, which is busy as it is. A worker with a GPU asks its cluster for
    one CPU more than these.
    """
    crops: Annotated[tuple[AnyCrops, ...], Field(min_length=1)] = WHOLE_IMAGE
    """Crops of each image, in order: each gives a row of tokens. Their boxes stand beside the captions."""
    captions_of: dict[Name, Fingerprint] = in_fingerprint_unless_default(default={})
    """Fingerprint, by corpus, of a finished token dataset of the same decision and crops.

    Codes alone are written then, beside its captions.
    """
    audit_rows: int = not_in_fingerprint(default=4, ge=0)
    """Rows of a shard, chosen by chance, that the audit decodes again from their stored codes.

    They are compared with the images that were encoded.
    """
    min_psnr: float | None = not_in_fingerprint(default=None, ge=0)
    """Least mean PSNR of a shard's audited rows, dB.

    A lower one is an alarm, even if all other shards are as bad.
    """
    on_alarm: Literal["report", "stop"] = not_in_fingerprint(default="report")
    """Action when a shard's codes collapse, drift from the dataset's or are under `min_psnr`.

    `report` says so; `stop` also ends the run, unfinished.
    """

    def threads(self, *, beside_gpu: bool) -> int:
        """Return the number of a worker's threads that read and decode ahead."""
        if self.decode_threads is not None:
            return self.decode_threads
        if beside_gpu:
            return DECODE_THREADS_PER_GPU
        return 0

    def cpus(self, gpus: float) -> int:
        """Return the CPUs that a worker with so many GPUs keeps busy.

        Without a GPU, its threads share the encoder's CPU.
        """
        if not gpus:
            return 1
        return 1 + self.threads(beside_gpu=True)

    @property
    def num_variants(self) -> int:
        """Rows of tokens of an image."""
        rows = 0
        for crops in self.crops:
            rows += crops.count
            if crops.flip:
                rows += crops.count
        return rows

    @model_validator(mode="after")
    def _few_variants(self) -> "PretokenizeConfig":
        if self.num_variants > MAX_VARIANTS:
            raise ValueError(
                f"crops give {self.num_variants} rows of tokens an image, at most {MAX_VARIANTS}: "
                "take some out"
            )
        return self

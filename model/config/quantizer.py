"""The quantisers' configurations, told apart by `kind`; imports neither torch nor ray."""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dualtoken.model.config.base import Config, PositiveInt

MAX_CODES = 65536
"""Codes are stored as uint16."""


class CodebookConfig(Config):
    """What quantisers with learnt codes share."""

    num_codes: Annotated[int, Field(ge=2, le=MAX_CODES)] = 16384
    """Of one codebook."""
    depth: Annotated[int, Field(ge=1, le=64)] = 8
    """Codes per token."""
    width: PositiveInt = 32
    """Channels of a quantised token."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the moving averages that move the codebook."""
    restart_below: Annotated[float, Field(ge=0)] | None = 1.0
    """A code used less often than this (moving average of uses per step) restarts at a token of the batch."""


class QuantizerConfig(CodebookConfig):
    """A residual quantiser: each depth takes what the depths before left over (arXiv 2203.01941)."""

    kind: Literal["residual"] = "residual"
    shared: bool = True
    """One codebook for all depths, as in the paper; otherwise one for each."""
    beam: Annotated[int, Field(ge=1, le=64)] = 1
    """Sums kept per depth while encoding; 1 takes the nearest code each time. Training never searches further."""


class SplitQuantizerConfig(CodebookConfig):
    """Channels split into `depth` parts, each with its own codebook (UniTok, arXiv 2502.20321)."""

    kind: Literal["split"]
    normalized: bool = True
    """Parts and codes have length one, so that the nearest code is that of the least angle."""

    @model_validator(mode="after")
    def _parts_divide_width(self) -> "SplitQuantizerConfig":
        if self.width % self.depth:
            raise ValueError(
                f"width={self.width} is no multiple of depth={self.depth}, the number of parts: change one of them"
            )
        return self


class ScalarQuantizerConfig(Config):
    """Each channel rounded to a few levels: FSQ, without a codebook to learn (arXiv 2309.15505)."""

    kind: Literal["scalar"]
    levels: Annotated[tuple[Annotated[int, Field(ge=2, le=64)], ...], Field(min_length=1)] = (8, 8, 8, 5, 5)
    """Levels of each channel of a code; their product is the number of codes."""
    depth: Annotated[int, Field(ge=1, le=64)] = 8
    """Codes per token."""

    @property
    def num_codes(self) -> int:
        """Of each depth."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:
        """Channels of a quantised token."""
        return self.depth * len(self.levels)

    @model_validator(mode="after")
    def _codes_are_uint16(self) -> "ScalarQuantizerConfig":
        if self.num_codes > MAX_CODES:
            raise ValueError(
                f"levels={self.levels} give {self.num_codes} codes, over {MAX_CODES}: take fewer levels or channels"
            )
        return self


def _kind(value: Any) -> Any:  # noqa: ANN401
    return value.get("kind", "residual") if isinstance(value, dict) else getattr(value, "kind", None)


AnyQuantizerConfig = Annotated[
    Annotated[QuantizerConfig, Tag("residual")]
    | Annotated[SplitQuantizerConfig, Tag("split")]
    | Annotated[ScalarQuantizerConfig, Tag("scalar")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message="kind must be residual, split or scalar"
    ),
]
"""The quantiser of a stream, told apart by `kind`; residual where none is said."""

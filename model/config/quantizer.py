"""Configurations of quantisers, told apart by `kind`; imports neither torch nor ray."""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dualtoken.model.config.base import Config, PositiveInt

MAX_CODES = 65536
"""Largest number of codes: they are stored as uint16."""


class CodebookConfig(Config):
    """Fields of all quantisers with learnt codes."""

    num_codes: Annotated[int, Field(ge=2, le=MAX_CODES)] = 16384
    """Number of codes of one codebook."""
    depth: Annotated[int, Field(ge=1, le=64)] = 8
    """Codes per token."""
    width: PositiveInt = 32
    """Channels of a quantised token."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the moving averages that move the codebook (EMA)."""
    restart_below: Annotated[float, Field(ge=0)] | None = 1.0
    """Use, as a moving average per step, under which a code restarts at a token of the batch; null: no
    restarts."""


class QuantizerConfig(CodebookConfig):
    """A residual quantiser: each depth takes what the depths before left over (arXiv 2203.01941)."""

    kind: Literal["residual"] = "residual"
    shared: bool = True
    """Use one codebook for all depths, as in the paper; otherwise one for each."""
    beam: Annotated[int, Field(ge=1, le=64)] = 1
    """Beam width of encoding: sums kept per depth. 1 takes the nearest code each time, and so does training
    always."""


class SplitQuantizerConfig(CodebookConfig):
    """Channels split into `depth` parts, each with its own codebook (UniTok, arXiv 2502.20321)."""

    kind: Literal["split"]
    normalized: bool = True
    """Scale parts and codes to length one, so that the nearest code is that of the least angle."""

    @model_validator(mode="after")
    def _parts_divide_width(self) -> "SplitQuantizerConfig":
        if self.width % self.depth:
            raise ValueError(
                f"width={self.width} is no multiple of depth={self.depth}, the number of parts: "
                "change one of them"
            )
        return self


class ScalarQuantizerConfig(Config):
    """Each channel rounded to a few levels: FSQ, without a codebook to learn (arXiv 2309.15505)."""

    kind: Literal["scalar"]
    levels: Annotated[tuple[Annotated[int, Field(ge=2, le=64)], ...], Field(min_length=1)] = (8, 8, 8, 5, 5)
    """Number of levels of each channel of a code; their product is the number of codes."""
    depth: Annotated[int, Field(ge=1, le=64)] = 8
    """Codes per token."""

    @property
    def num_codes(self) -> int:
        """Number of codes of each depth."""
        return math.prod(self.levels)

    @property
    def width(self) -> int:
        """Channels of a quantised token."""
        return self.depth * len(self.levels)

    @model_validator(mode="after")
    def _codes_are_uint16(self) -> "ScalarQuantizerConfig":
        if self.num_codes > MAX_CODES:
            raise ValueError(
                f"levels={self.levels} give {self.num_codes} codes, over {MAX_CODES}: "
                "take fewer levels or channels"
            )
        return self


def _kind(value: Any) -> Any:  # noqa: ANN401  (whatever a recipe holds)
    """Return the kind of a recipe's value or of a configuration; None for anything else."""
    if isinstance(value, dict):
        return value.get("kind", "residual")
    return getattr(value, "kind", None)


AnyQuantizerConfig = Annotated[
    Annotated[QuantizerConfig, Tag("residual")]
    | Annotated[SplitQuantizerConfig, Tag("split")]
    | Annotated[ScalarQuantizerConfig, Tag("scalar")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message="kind must be residual, split or scalar"
    ),
]
"""Quantiser of a stream, by its `kind`; residual where there is none."""

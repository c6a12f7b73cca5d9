"""The recipe's `filter` key: rules that keep or drop samples; imports neither torch nor ray."""

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dualtoken.model.config.base import Config, PositiveInt, Precision, in_fingerprint_unless_default


class MinSide(Config):
    """Drops images with a shorter side, as fetched, under `pixels`."""

    rule: Literal["min_side"]
    pixels: PositiveInt


class MaxAspect(Config):
    """Drops images more than `ratio` times as long as wide, or as wide as long."""

    rule: Literal["max_aspect"]
    ratio: Annotated[float, Field(ge=1)]


class CaptionLength(Config):
    """Drops captions of fewer words or characters, or of more characters."""

    rule: Literal["caption_length"]
    min_words: Annotated[int, Field(ge=0)] = 1
    min_characters: Annotated[int, Field(ge=0)] = 1
    max_characters: PositiveInt | None = in_fingerprint_unless_default(default=None)

    @model_validator(mode="after")
    def _some_length_passes(self) -> "CaptionLength":
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters={self.max_characters} is under min_characters={self.min_characters}: "
                "raise it"
            )
        return self


class ExactDuplicate(Config):
    """Keeps the first of the images of a corpus that have the same pixels."""

    rule: Literal["exact_duplicate"]


class Similarity(Config):
    """Keeps the images that the teacher finds closest to their captions."""

    rule: Literal["similarity"]
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Least cosine between image and caption."""
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share to keep of the samples that reach this rule."""


Rule = Annotated[
    MinSide | MaxAspect | CaptionLength | ExactDuplicate | Similarity, Field(discriminator="rule")
]


class FilterConfig(Config):
    """Scores of every sample, then rules over the scores; a changed rule runs no model again."""

    rules: tuple[Rule, ...] = ()
    """Rules in order; the first that objects names the reason."""
    batch_size: PositiveInt = 64
    """Images and captions that the teacher scores at once."""
    precision: Precision = in_fingerprint_unless_default(default="float32")
    """Precision of the teacher's image tower; bfloat16 is faster where hardware has it, and moves scores by
    about a hundredth of themselves."""

    @model_validator(mode="after")
    def _each_rule_once(self) -> "FilterConfig":
        counts = Counter(rule.rule for rule in self.rules)
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"rules name {min(repeated)} more than once: keep one of them")
        return self

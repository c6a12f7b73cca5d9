"""The rules by which a recipe keeps samples; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dualtoken.model.config.base import Config, PositiveInt


class MinSide(Config):
    """Drop images whose shorter side, as fetched, is under `pixels`."""

    rule: Literal["min_side"]
    pixels: PositiveInt


class MaxAspect(Config):
    """Drop images more than `ratio` times as long as wide, or as wide as long."""

    rule: Literal["max_aspect"]
    ratio: Annotated[float, Field(ge=1)]


class CaptionLength(Config):
    """Drop captions of fewer words or characters."""

    rule: Literal["caption_length"]
    min_words: Annotated[int, Field(ge=0)] = 1
    min_characters: Annotated[int, Field(ge=0)] = 1


class ExactDuplicate(Config):
    """Keep the first of the images of a corpus that have the same pixels."""

    rule: Literal["exact_duplicate"]


class Similarity(Config):
    """Keep the images whose caption the teacher finds closest."""

    rule: Literal["similarity"]
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = -1.0
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of those that reach this rule."""


Rule = Annotated[
    MinSide | MaxAspect | CaptionLength | ExactDuplicate | Similarity, Field(discriminator="rule")
]


class FilterConfig(Config):
    """Scores of every sample, then rules over the scores; a changed rule runs no model again."""

    rules: tuple[Rule, ...] = ()
    """In order; the first that objects names the reason."""
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def _each_rule_once(self) -> "FilterConfig":
        names = [rule.rule for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rules name {min(twice)} more than once: keep one of them")
        return self

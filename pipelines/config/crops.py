"""A recipe's crops of an image, each of them a row of tokens; imports neither torch nor ray."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dualtoken.model.config.base import Config


class Crops(Config):
    """Square crops of an image that become rows of tokens."""

    flip: bool = False
    """Whether each crop is taken once more, mirrored left to right."""

    @property
    def count(self) -> int:
        """Number of crops of an image, without the mirrored ones."""
        return 1


class CenterCrop(Crops):
    """The tokenizer's own transform: of an image that is no square, the centre."""

    kind: Literal["center"]


class GridCrops(Crops):
    """Crops spread evenly over the image, row by row; the outer ones touch its edges."""

    kind: Literal["grid"]
    rows: Annotated[int, Field(ge=1, le=8)] = 2
    columns: Annotated[int, Field(ge=1, le=8)] = 2
    scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Side of a crop over the image's shorter side."""

    @property
    def count(self) -> int:
        """Number of crops of an image."""
        return self.rows * self.columns


class RandomCrops(Crops):
    """Crops of random sizes and places, decided by the seed and the sample's key alone."""

    kind: Literal["random"]
    number: Annotated[int, Field(ge=1, le=64)]
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Least side of a crop over the image's shorter side."""
    max_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Largest side of a crop, likewise."""
    seed: int = 0

    @property
    def count(self) -> int:
        """Number of crops of an image."""
        return self.number

    @model_validator(mode="after")
    def _scales_in_order(self) -> "RandomCrops":
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale={self.min_scale} is over max_scale={self.max_scale}: lower it")
        return self


AnyCrops = Annotated[CenterCrop | GridCrops | RandomCrops, Field(discriminator="kind")]
WHOLE_IMAGE = (CenterCrop(kind="center"),)
"""Crops by default: the centre alone."""
MAX_VARIANTS = 64
"""Most rows of tokens that one image may give; they are decoded together."""

"""Optional parts of the tokenizer's training, as frozen pydantic models; imports neither torch nor ray.

Defaults are the released DualToken code's; its steps are of 256 images.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from dualtoken.model.config.base import Config, Location, PositiveInt, not_in_fingerprint

Phase = Literal[0, 1, 2]
"""0 starts the new parts beside a frozen tower, 1 trains everything, 2 refines meaning and leaves pictures as they are."""


class NoPerceptual(Config):
    """Pictures are judged by their pixels only."""

    kind: Literal["none"]


class LpipsConfig(Config):
    """Pictures are judged by VGG16's features too (LPIPS, arXiv 1801.03924)."""

    kind: Literal["lpips"]
    weight: Annotated[float, Field(gt=0)] = 1.0
    backbone: Location | None = not_in_fingerprint(default=None)
    """File with torchvision's VGG16 weights; by default where torchvision keeps its downloads."""
    heads: Location | None = not_in_fingerprint(default=None)
    """File with the linear heads; by default those that torchmetrics ships."""


def _spell_out(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


PerceptualConfig = Annotated[
    NoPerceptual | LpipsConfig, Field(discriminator="kind"), BeforeValidator(_spell_out)
]
"""`none`, or a mapping with its `kind`. Files are run_only since their contents, not their names, are part of a fingerprint."""


class RandomCropConfig(Config):
    """A random part of each picture, resized to a square: torchvision's RandomResizedCrop, never mirrored."""

    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(le=1)]] = (0.9, 1.0)
    """Share of the picture's area, at least and at most."""
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    """Width over height, at least and at most."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "RandomCropConfig":
        for name, (least, most) in (("scale", self.scale), ("ratio", self.ratio)):
            if least > most:
                raise ValueError(f"{name}=[{least}, {most}]: put the lower bound first")
        return self


class GanConfig(Config):
    """A patch discriminator judges the pictures (VQGAN, arXiv 2012.09841)."""

    weight: Annotated[float, Field(gt=0)] = 0.75
    """Times the adaptive weight: of the generator's loss."""
    start_step: Annotated[int, Field(ge=0)] = 0
    """First step in which discriminator and generator loss take part; released: half an epoch, 19,531."""
    min_adaptive_weight: Annotated[float, Field(gt=0)] = 0.3
    max_adaptive_weight: Annotated[float, Field(gt=0)] = 10.0
    """Bounds of the adaptive weight, a ratio of gradient norms at the decoder's last layer."""
    learning_rate: Annotated[float, Field(gt=0)] = 7.2e-5
    """Of the discriminator, at its peak."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 4e-5
    """At the run's last step, along a cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """From `start_step` on, linear; released: half an epoch, 19,531."""
    betas: tuple[float, float] = (0.5, 0.9)
    width: Annotated[PositiveInt, Field(multiple_of=32)] = 64
    """Channels after the discriminator's first layer; its norms have 32 groups."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "GanConfig":
        if self.min_adaptive_weight > self.max_adaptive_weight:
            least, most = self.min_adaptive_weight, self.max_adaptive_weight
            raise ValueError(f"min_adaptive_weight={least} is over max_adaptive_weight={most}: lower it")
        return self


class WeightEmaConfig(Config):
    """An average of the weights over the steps, which is what a run ends with."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Per step; half-life in steps is about 0.69 / (1 - decay)."""

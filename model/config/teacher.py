"""Shape and training of a teacher of our own, as frozen pydantic models; imports neither torch nor ray."""

from typing import Annotated

from pydantic import Field

from dualtoken.model.config.base import Config, PositiveInt, in_fingerprint_unless_default
from dualtoken.model.config.optimizer import (
    AdamWConfig,
    CosineSchedule,
    OptimizerConfig,
    ParameterGroups,
    ScheduleConfig,
)
from dualtoken.model.config.tokenizer import TextConfig, TowerConfig


class TeacherConfig(Config):
    """Shape of a SigLIP-style image and text model (arXiv 2303.15343)."""

    image_size: PositiveInt
    """Side of the square input, pixels."""
    tower: TowerConfig
    """Shape of the image tower."""
    text: TextConfig = TextConfig()
    """Shape of the text transformer."""


class TeacherTrainingConfig(TeacherConfig):
    """A teacher's shape and what decides the steps of its training."""

    steps: PositiveInt = 700
    """Number of optimiser steps."""
    batch_size: PositiveInt = 96
    """Pairs of an image and a text per step."""
    optimizer: OptimizerConfig = in_fingerprint_unless_default(default=AdamWConfig())
    """`adamw`, or `{kind: muon}`: Muon for matrices, AdamW for the rest."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps of linear warm-up."""
    schedule: ScheduleConfig = in_fingerprint_unless_default(default=CosineSchedule())
    """Learning rate after the warm-up: `cosine`, `wsd`, `constant`, or a mapping with its `kind`."""
    parameters: ParameterGroups = in_fingerprint_unless_default(default=())
    """Parameters with a rate or weight decay of their own, or frozen, by patterns of their names."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of matrices and kernels."""
    seed: int = 0
    """Seed of fresh weights and of the order of samples."""

"""Configurations of networks and of their training: frozen pydantic models.

This is the lowest room of `model`: it imports no other. It imports neither torch nor Ray, so that commands
can read a recipe at once; tests/test_imports.py checks it. It reads open_clip's packaged files, and touches
nothing else.
"""

from dualtoken.model.config.base import Config
from dualtoken.model.config.quantizer import (
    AnyQuantizerConfig,
    QuantizerConfig,
    ScalarQuantizerConfig,
    SplitQuantizerConfig,
)
from dualtoken.model.config.teacher import TeacherConfig, TeacherTrainingConfig
from dualtoken.model.config.tokenizer import (
    ConvEncoderConfig,
    DecoderConfig,
    NamedTower,
    ShortcutConfig,
    TextConfig,
    TokenizerConfig,
    TowerConfig,
)
from dualtoken.model.config.training import (
    GanConfig,
    LossConfig,
    LpipsConfig,
    RandomCropConfig,
    TrainingConfig,
    WeightEmaConfig,
)

__all__ = [
    "AnyQuantizerConfig",
    "Config",
    "ConvEncoderConfig",
    "DecoderConfig",
    "GanConfig",
    "LossConfig",
    "LpipsConfig",
    "NamedTower",
    "QuantizerConfig",
    "RandomCropConfig",
    "ScalarQuantizerConfig",
    "ShortcutConfig",
    "SplitQuantizerConfig",
    "TeacherConfig",
    "TeacherTrainingConfig",
    "TextConfig",
    "TokenizerConfig",
    "TowerConfig",
    "TrainingConfig",
    "WeightEmaConfig",
]

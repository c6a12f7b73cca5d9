"""What others' settings must offer; any object with these attributes will do, such as a recipe's models."""
# ruff: noqa: D102  (each is explained where it is set: model.config, or the recipe)

from typing import Literal, Protocol, runtime_checkable

from model.config import TextConfig, TowerConfig


@runtime_checkable
class TeacherShape(Protocol):
    """The shape of a teacher that we train ourselves."""

    @property
    def image_size(self) -> int: ...
    @property
    def tower(self) -> TowerConfig: ...
    @property
    def text(self) -> TextConfig: ...


@runtime_checkable
class TeacherSettings(TeacherShape, Protocol):
    """A teacher's shape and its training."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def seed(self) -> int: ...


@runtime_checkable
class LossWeights(Protocol):
    """How much each term of the tokenizer's loss counts."""

    @property
    def reconstruction(self) -> float: ...
    @property
    def semantic(self) -> float: ...
    @property
    def pooled(self) -> float: ...
    @property
    def commitment(self) -> float: ...


@runtime_checkable
class TrainSettings(Protocol):
    """What decides the steps of the tokenizer's training."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def precision(self) -> Literal["float32", "bfloat16"]: ...
    @property
    def losses(self) -> LossWeights: ...
    @property
    def seed(self) -> int: ...

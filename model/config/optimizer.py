"""Optimisers of a training run, as frozen pydantic models; imports neither torch nor ray."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dualtoken.model.config.base import Config, PositiveInt, kind_by_its_name


class AdamWConfig(Config):
    """AdamW for all weights (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"


class MuonConfig(Config):
    """Muon for the matrices of linear layers, AdamW for all other weights.

    Muon sets all singular values of a matrix's momentum to about 1 (arXiv 2502.16982). Its steps have the
    size of AdamW's, so that the same learning rates and weight decays serve.
    """

    kind: Literal["muon"]
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the matrices; by default that of the other weights."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the momentum, Nesterov's."""
    num_iterations: PositiveInt = 5
    """Newton-Schulz iterations of a step."""


OptimizerConfig = Annotated[
    AdamWConfig | MuonConfig, Field(discriminator="kind"), BeforeValidator(kind_by_its_name)
]
"""`adamw`, `muon`, or a mapping with its `kind`."""


class CosineSchedule(Config):
    """After the warm-up the learning rate falls along a cosine to the end of the run."""

    kind: Literal["cosine"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the end over the peak."""


class WsdSchedule(Config):
    """Warm-up, stable, decay (arXiv 2404.06395): the rate stays at its peak, and falls linearly at the end.

    A run that is made longer before its decay takes the same steps so far.
    """

    kind: Literal["wsd"]
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps in which the rate falls."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the end over the peak."""


class ConstantSchedule(Config):
    """After the warm-up the learning rate stays at its peak."""

    kind: Literal["constant"]


ScheduleConfig = Annotated[
    CosineSchedule | WsdSchedule | ConstantSchedule,
    Field(discriminator="kind"),
    BeforeValidator(kind_by_its_name),
]
"""`cosine`, `wsd`, `constant`, or a mapping with its `kind`."""


class ParameterGroup(Config):
    """Parameters that move otherwise than the rest."""

    pattern: Annotated[str, Field(min_length=1)]
    """Names of parameters as in `model.safetensors`, with `*` for any characters: `tower.*`, `*.bias`."""
    rate: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay; by default that of the rest, which is none for biases, norms and learned tokens."""
    freeze: bool = False
    """Keep these parameters as they are."""


ParameterGroups = tuple[ParameterGroup, ...]
"""Groups in their order: a parameter belongs to the first whose pattern matches."""


def group_of(name: str, groups: Sequence[ParameterGroup]) -> ParameterGroup | None:
    """Return the first group whose pattern matches a parameter's name, if one does."""
    for group in groups:
        if fnmatchcase(name, group.pattern):
            return group
    return None

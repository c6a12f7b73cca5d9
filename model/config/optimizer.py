"""Optimisers of a training run, as frozen pydantic models; imports neither torch nor ray."""

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

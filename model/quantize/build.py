"""Builds the quantiser that a configuration describes."""

from dualtoken.model.config.quantizer import AnyQuantizerConfig, QuantizerConfig, SplitQuantizerConfig
from dualtoken.model.quantize.base import Quantizer
from dualtoken.model.quantize.finite_scalar import ScalarQuantizer
from dualtoken.model.quantize.residual import ResidualQuantizer
from dualtoken.model.quantize.split import SplitQuantizer


def build_quantizer(config: AnyQuantizerConfig) -> Quantizer:
    """Return a fresh quantiser of the kind that the configuration's class says."""
    if isinstance(config, QuantizerConfig):
        return ResidualQuantizer(config)
    if isinstance(config, SplitQuantizerConfig):
        return SplitQuantizer(config)
    return ScalarQuantizer(config)

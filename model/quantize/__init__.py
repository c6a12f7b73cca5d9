"""Quantisers: tokens to ids and back, behind one interface.

The room may import `config`, `precision`, `metrics`, `optimizer`, `hub` and `vision` of `model`; today it
needs the first two. It computes with torch on the device of the tensors it is given, and touches neither disk
nor network.
"""

from dualtoken.model.quantize.base import Quantized, Quantizer
from dualtoken.model.quantize.build import build_quantizer
from dualtoken.model.quantize.finite_scalar import ScalarQuantizer
from dualtoken.model.quantize.nearest import nearest_codes
from dualtoken.model.quantize.residual import ResidualQuantizer
from dualtoken.model.quantize.split import SplitQuantizer
from dualtoken.model.quantize.streams import encode_streams

__all__ = [
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "ScalarQuantizer",
    "SplitQuantizer",
    "build_quantizer",
    "encode_streams",
    "nearest_codes",
]

"""Memory of the quantiser beside its inputs and outputs, at the size of the published 384-pixel model."""

import sys
from typing import Any

import pytest
import torch

from benchmarks.memory import peak_memory
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.quantize import ResidualQuantizer, nearest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(params=["ordinary", "nearly equal codes"])
def quantizer(request: pytest.FixtureRequest) -> ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(QuantizerConfig(num_codes=16384, depth=8, width=32))
    if request.param == "nearly equal codes":
        # All codes are candidates then, and float64 products are made too.
        quantizer.codes.copy_(quantizer.codes[:1] + 1e-7 * quantizer.codes)
    return quantizer


def test_no_call_needs_64_mb_beside_inputs_and_outputs(
    quantizer: ResidualQuantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Memory grows with the number of threads up to this limit.
    monkeypatch.setattr(nearest, "_THREAD_PRODUCTS", nearest._MAX_PRODUCTS)
    tokens = torch.randn(1, 729, 32)
    assert peak_memory(lambda: quantizer.encode(tokens)) < 64
    assert peak_memory(lambda: quantizer.update(quantizer(tokens), torch.Generator())) < 64


@pytest.mark.parametrize("settings", [{"shared": False}, {"beam": 4}], ids=["separate", "beam"])
def test_separate_codebooks_and_a_beam_are_searched_in_the_same_memory(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(QuantizerConfig(num_codes=16384, depth=8, width=32, **settings))
    tokens = torch.randn(1, 729, 32)
    assert peak_memory(lambda: quantizer.encode(tokens)) < 64

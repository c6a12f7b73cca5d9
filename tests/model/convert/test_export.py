"""The searches that a graph can hold find what the exact ones find."""

import pytest
import torch

from dualtoken.model.config.quantizer import QuantizerConfig, SplitQuantizerConfig
from dualtoken.model.quantize import build_quantizer
from dualtoken.model.quantize.ema_codebook import CodebookQuantizer
from dualtoken.model.quantize.exportable import exportable

CONFIGS = {
    "residual": QuantizerConfig(num_codes=64, depth=4, width=8),
    "separate": QuantizerConfig(num_codes=64, depth=4, width=8, shared=False),
    "beam": QuantizerConfig(num_codes=64, depth=4, width=8, beam=5),
    "wide beam": QuantizerConfig(num_codes=64, depth=2, width=8, shared=False, beam=64),
    "split": SplitQuantizerConfig(kind="split", num_codes=64, depth=4, width=32),
    "split, not normalized": SplitQuantizerConfig(
        kind="split", num_codes=64, depth=4, width=32, normalized=False
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_exportable_search_is_the_exact_one(config: QuantizerConfig | SplitQuantizerConfig) -> None:
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    assert isinstance(quantizer, CodebookQuantizer)
    for number, codes in enumerate(quantizer.codes.view(-1, 64, 8)):
        # Equal codes, more of them than there are candidates.
        codes[20 + number : 40] = codes[3]
        # Codes that float32's products cannot tell apart.
        codes[40:44] = codes[4] + 1e-7
    quantizer.codes.mul_(100)
    broken = torch.full((2, 2, config.width), torch.nan)
    broken[:, 1] = torch.inf
    tokens = torch.cat(
        [
            torch.randn(2, 50, config.width) * 100,
            quantizer.codes.view(1, -1, config.width).expand(2, -1, -1),
            broken,
        ],
        dim=1,
    )
    graph = exportable(quantizer)
    exact = quantizer.encode(tokens)
    assert torch.equal(graph.encode(tokens), exact)
    assert not exact[:, -2:].any()
    torch.testing.assert_close(graph.lookup(exact), quantizer.lookup(exact))

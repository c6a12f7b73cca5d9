"""The search that a graph can hold finds what the exact one finds."""

import torch

from model.export import PlainQuantizer
from model.quantize import ResidualQuantizer
from model.quantizer_config import QuantizerConfig


def test_the_plain_search_is_the_exact_one() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(QuantizerConfig(num_codes=64, depth=4, width=8))
    # Equal codes, more of them than there are candidates, and codes that float32's products cannot tell apart.
    quantizer.codes[20:40] = quantizer.codes[3]
    quantizer.codes[40:44] = quantizer.codes[4] + 1e-7
    quantizer.codes.mul_(100)
    tokens = torch.cat([torch.randn(2, 50, 8) * 100, quantizer.codes[None].expand(2, -1, -1)], dim=1)
    plain, exact = PlainQuantizer(quantizer), quantizer(tokens)
    assert torch.equal(plain.encode(tokens), exact.ids)
    torch.testing.assert_close(plain.lookup(plain.encode(tokens)), exact.vectors)
    torch.testing.assert_close(plain.lookup(exact.ids), quantizer.lookup(exact.ids))

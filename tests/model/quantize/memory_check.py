"""Prints the peak memory of a quantiser's calls, MB, in a process that has done nothing else.

`python memory_check.py ordinary|nearly-equal|separate|beam`, at the size of the published 384-pixel model. Of
a process that ran other tests, the resident memory also tells what these left to the allocator.
"""

import sys
from typing import Any

import torch

from benchmarks.memory import peak_memory
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.quantize import ResidualQuantizer, nearest

SETTINGS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "nearly-equal": {},
    "separate": {"shared": False},
    "beam": {"beam": 4},
}


def main(case: str) -> None:
    # Memory grows with the number of threads up to this limit.
    nearest._THREAD_PRODUCTS = nearest._MAX_PRODUCTS
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(QuantizerConfig(num_codes=16384, depth=8, width=32, **SETTINGS[case]))
    if case == "nearly-equal":
        # All codes are candidates then, and float64 products are made too.
        quantizer.codes.copy_(quantizer.codes[:1] + 1e-7 * quantizer.codes)
    tokens = torch.randn(1, 729, 32)
    print(peak_memory(lambda: quantizer.encode(tokens)))
    if case in ("ordinary", "nearly-equal"):
        print(peak_memory(lambda: quantizer.update(quantizer(tokens), torch.Generator())))


if __name__ == "__main__":
    main(sys.argv[1])

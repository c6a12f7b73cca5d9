"""One of two processes that move codebooks together, each by its half of each batch, and save them.

A step has two micro-batches and one all-reduce. Rank 0 also does it alone.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from dualtoken.model.config.quantizer import QuantizerConfig, SplitQuantizerConfig
from dualtoken.model.quantize import build_quantizer

CONFIGS = (
    QuantizerConfig(num_codes=48, depth=3, width=6),
    QuantizerConfig(num_codes=48, depth=3, width=6, shared=False),
    SplitQuantizerConfig(kind="split", num_codes=48, depth=3, width=6),
)
STEPS = 4


def train(rank: int, ranks: int) -> list[torch.Tensor]:
    codes = []
    for config in CONFIGS:
        torch.manual_seed(0)
        quantizer = build_quantizer(config)
        for step in range(STEPS):
            tokens = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(step))
            micro_batches = [tokens]
            if ranks > 1:
                micro_batches = list(tokens.chunk(ranks)[rank].chunk(2))
            quantized = [quantizer(micro_batch) for micro_batch in micro_batches]
            quantizer.update(quantized, torch.Generator().manual_seed(step))
        codes.append(quantizer.state_dict()["codes"])
    return codes


def main() -> None:
    folder = Path(sys.argv[1])
    rank = int(sys.argv[2])
    if rank == 0:
        torch.save(train(0, 1), folder / "alone.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with torch.profiler.profile() as profile:
        torch.save(train(rank, 2), folder / f"{rank}.pt")
    collectives = {}
    for event in profile.key_averages():
        if event.key.startswith("c10d::"):
            collectives[event.key] = event.count
    assert collectives == {"c10d::allreduce_": STEPS * len(CONFIGS)}, collectives
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

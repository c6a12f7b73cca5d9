"""One codebook on CPU at the size of the 384-pixel model: ours against peers and the matrix product alone, in one process.

Run: python -m benchmarks.quantizer (needs the `bench` extra). Repeats are interleaved, so that other load hits all alike; on one
thread (OMP_NUM_THREADS=1) times are of the process's own work, medians in either case.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ

from benchmarks.memory import peak_memory
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.quantize import ResidualQuantizer

TOKENS, CODES, WIDTH, DEPTH = 729, 16384, 32, 8
CHECKED = 64
"""Tokens whose ids are compared with float64's."""


def main() -> None:
    """Print medians, ratios, memory and agreement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    quantizer, tokens = trained()
    runs = contestants(quantizer, tokens)
    memory = {name: peak_memory(run) for name, run in runs.items()}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{TOKENS} tokens, {CODES} codes, {WIDTH} channels, {DEPTH} depths; {torch.get_num_threads()} threads, {repeats} repeats"
    )
    print(
        f"{'':42}{'CPU ms' if clock is time.process_time else 'wall ms':>10}{'over ours':>11}{'extra MB':>10}"
    )
    for name, median in medians.items():
        ours = medians["ours, training step" if "training" in name else "ours, encode"]
        print(f"{name:42}{median * 1e3:10.1f}{median / ours:11.2f}{memory[name]:10.0f}")
    tiles, encode = medians["floor: product of this shape, in tiles"], medians["ours, encode"]
    rate_floor = (
        2 * TOKENS * CODES * WIDTH * DEPTH / (2 * 1024**3 / medians["(product of 1024 by 1024 by 1024)"])
    )
    print(f"ours, encode, over the floor: {encode / tiles:.2f} by this shape's product,", end=" ")
    print(f"{encode / rate_floor:.2f} by the 1024-cube's rate ({rate_floor * 1e3:.1f} ms)")
    checked = tokens[:, :CHECKED]
    share = agreement(checked[0], quantizer.codes, quantizer.encode(checked)[0])
    print(f"ids of {CHECKED} tokens that float64 brute force gives, too: {share:.4%}")


def trained() -> tuple[ResidualQuantizer, Tensor]:
    """Return a codebook moved by a few steps on a mixture of Gaussians, and tokens of that mixture."""
    centers, scale = torch.randn(256, WIDTH), torch.linspace(1.5, 0.2, WIDTH)
    quantizer = ResidualQuantizer(
        QuantizerConfig(num_codes=CODES, depth=DEPTH, width=WIDTH, decay=0.5, restart_below=0.5)
    )
    for step in range(4):
        batch = (centers[torch.randint(256, (1, 4096))] + 0.5 * torch.randn(1, 4096, WIDTH)) * scale
        quantizer.update(quantizer(batch), torch.Generator().manual_seed(step))
    return quantizer, (centers[torch.randint(256, (1, TOKENS))] + 0.5 * torch.randn(1, TOKENS, WIDTH)) * scale


def contestants(quantizer: ResidualQuantizer, tokens: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed; training steps include moving the codebook, since the peers do so in their forward."""
    # Without restarts: 16,384 codes restarted at 5,832 vectors, step after step, pile up in few places. Those are `crowded`.
    ours = ResidualQuantizer(quantizer.config.model_copy(update={"restart_below": None}))
    ours.load_state_dict(quantizer.state_dict())
    peers = [
        ResidualVQ(dim=WIDTH, num_quantizers=DEPTH, codebook_size=CODES, shared_codebook=True)
        for _ in range(2)
    ]
    for peer in peers:
        peer.load_state_dict(
            {
                name: quantizer.codes[None] if name.endswith(".embed") else value
                for name, value in peer.state_dict().items()
            }
        )
    peers[0].eval()
    crowded = ResidualQuantizer(QuantizerConfig(num_codes=CODES, depth=DEPTH, width=WIDTH, restart_below=1.0))
    for step in range(4):
        crowded.update(crowded(tokens), torch.Generator().manual_seed(step))
    several = ResidualQuantizer(quantizer.config.model_copy(update={"beam": 4}))
    several.load_state_dict(quantizer.state_dict())
    vectors, tile = tokens[0], torch.empty(64, CODES)
    large = torch.randn(1024, 1024)
    return {
        "ours, encode": lambda: quantizer.encode(tokens),
        "ours, encode, beam of 4": lambda: several.encode(tokens),
        "ours, training step": lambda: ours.update(ours(tokens), torch.Generator()),
        "ours, training step, crowded codes": lambda: crowded.update(
            crowded(tokens), torch.Generator().manual_seed(4)
        ),
        "vector-quantize-pytorch, eval": lambda: peers[0](tokens),
        "vector-quantize-pytorch, training forward": lambda: peers[1](tokens),
        "full distances, one-hot, eval": lambda: full_distances(vectors, quantizer.codes, move=False),
        "full distances, one-hot, training": lambda: full_distances(vectors, quantizer.codes, move=True),
        "floor: product of this shape, in tiles": lambda: [
            torch.mm(chunk, quantizer.codes.T, out=tile[: len(chunk)])
            for _ in range(DEPTH)
            for chunk in vectors.split(64)
        ],
        "floor: product of this shape, whole": lambda: [vectors @ quantizer.codes.T for _ in range(DEPTH)],
        "(product of 1024 by 1024 by 1024)": lambda: large @ large,
    }


@torch.no_grad()
def full_distances(vectors: Tensor, codes: Tensor, *, move: bool) -> Tensor:
    """Quantise as the released code does: all distances, then one-hot products for codes and, in training, their sums."""
    ids, sums = [], torch.zeros_like(codes)
    for _ in range(DEPTH):
        distances = vectors.square().sum(1, keepdim=True) - 2 * vectors @ codes.T + codes.square().sum(1)
        ids.append(distances.argmin(1))
        hot = F.one_hot(ids[-1], len(codes)).to(vectors.dtype)
        if move:
            sums += hot.T @ vectors
        vectors = vectors - hot @ codes
    return torch.stack(ids, 1)


@torch.no_grad()
def agreement(vectors: Tensor, codes: Tensor, ids: Tensor) -> float:
    """Return the share of ids, (M, D), that differences in float64 give."""
    same = 0
    for found in ids.unbind(dim=1):
        exact = torch.cat([(codes.double() - row.double()).square().sum(1).argmin()[None] for row in vectors])
        same += int((exact == found).sum())
        vectors = vectors - codes[found]
    return same / ids.numel()


if __name__ == "__main__":
    main()

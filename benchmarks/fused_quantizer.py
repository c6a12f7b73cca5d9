"""Both streams' codes at the size of the 384-pixel model: `python -m benchmarks.fused_quantizer [--device cuda] [--images 1 8 64]`.

Microseconds an image, medians of interleaved repeats: the operator that encoding calls (on a GPU the fused kernel), all distances
as one matrix per depth, and the matrix products alone, on a GPU in float16 as in the kernel.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.models import hardware, seconds
from benchmarks.quantizer import CHECKED, CODES, DEPTH, TOKENS, WIDTH, agreement, full_distances, trained
from model.precision import forbid_tf32
from model.quantize.search import residual_codes


def contestants(vectors: Tensor, codes: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed, on two streams' vectors and codebooks."""
    kind = torch.float16 if vectors.is_cuda else torch.float32
    streams = [(rows.split(TOKENS), book[0]) for rows, book in zip(vectors, codes, strict=True)]
    rounded = [([part.to(kind) for part in parts], book.to(kind).T) for parts, book in streams]
    return {
        "ours": lambda: residual_codes(vectors, codes, DEPTH, 1),
        "full distances": lambda: [full_distances(part, book, move=False) for parts, book in streams for part in parts],
        f"{kind} products alone": lambda: [part @ book for parts, book in rounded for part in parts for _ in range(DEPTH)],
    }


def main() -> None:
    """Print a table, and the share of codes that float64 gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    forbid_tf32()
    torch.manual_seed(0)
    quantizers, tokens = zip(*(trained() for _ in range(2)), strict=True)
    codes = torch.stack([quantizer.codes[None] for quantizer in quantizers]).to(device)
    image = torch.cat(tokens).to(device)
    print(f"{hardware(device)}: 2 streams, {TOKENS} tokens an image, {CODES} codes, {WIDTH} channels, {DEPTH} depths")
    for images in arguments.images:
        runs = contestants(image.repeat(1, images, 1), codes)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(arguments.repeats + 1):
            for name, run in runs.items():
                taken = seconds(run, device)
                if repeat:  # the first compiles
                    times[name].append(taken)
        medians = {name: statistics.median(taken) / images * 1e6 for name, taken in times.items()}
        print(f"{images} images:", ", ".join(f"{name} {us:.0f} us ({us / medians['ours']:.2f})" for name, us in medians.items()))
    for quantizer, stream in zip(quantizers, tokens, strict=True):
        share = agreement(quantizer.to(device), stream[:, :CHECKED].to(device))
        print(f"ids of {CHECKED} tokens that float64 brute force gives, too: {share:.4%}")


if __name__ == "__main__":
    main()

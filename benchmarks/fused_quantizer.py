"""Both streams' codes at the size of the 384-pixel model: `python -m benchmarks.fused_quantizer [--device cuda] [--images 1 8 64]`.

Microseconds an image, launches included, medians of interleaved repeats: the operator that encoding calls (on a GPU with Triton the
fused kernel), all distances as one matrix per depth, and the matrix products alone, on a GPU in float16 as in the kernel. Needs the
`bench` extra.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.models import hardware, seconds
from benchmarks.quantizer import CHECKED, CODES, DEPTH, TOKENS, WIDTH, agreement, full_distances, trained
from dualtoken.model.precision import forbid_tf32
from dualtoken.model.quantize.residual_search import is_fused, residual_codes


def contestants(vectors: Tensor, codes: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed, on two streams' vectors and codebooks."""
    kind = torch.float16 if vectors.is_cuda else torch.float32
    streams = [(rows.split(TOKENS), book[0]) for rows, book in zip(vectors, codes, strict=True)]
    rounded = [([part.to(kind) for part in parts], book.to(kind).T) for parts, book in streams]
    products = rounded[0][0][0].new_empty(TOKENS, codes.shape[2])
    return {
        "ours": lambda: residual_codes(vectors, codes, DEPTH, 1),
        "full distances": lambda: [
            full_distances(part, book, move=False) for parts, book in streams for part in parts
        ],
        f"{kind} products alone": lambda: [
            torch.mm(part, book, out=products)
            for parts, book in rounded
            for part in parts
            for _ in range(DEPTH)
        ],
    }


def main() -> None:
    """Print times, ratios and the share of codes that float64 gives, for each number of images at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[1, 8, 64] if torch.cuda.is_available() else [1]
    )
    parser.add_argument("--repeats", type=int, default=20 if torch.cuda.is_available() else 3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    forbid_tf32()
    torch.manual_seed(0)
    quantizers, tokens = zip(*(trained() for _ in range(2)), strict=True)
    codes = torch.stack([quantizer.codes[None] for quantizer in quantizers]).to(device)
    image = torch.cat(tokens).to(device)
    print(
        f"{hardware(device)}: 2 streams, {TOKENS} tokens an image, {CODES} codes, {WIDTH} channels, {DEPTH} depths"
    )
    print("ours is", "the fused kernel" if is_fused(image, 1) else "the search in PyTorch")
    for images in arguments.images:
        vectors = image.repeat(1, images, 1)
        runs = contestants(vectors, codes)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(arguments.repeats + 1):
            for name, run in runs.items():
                taken = seconds(run, device)
                if repeat:  # the first compiles
                    times[name].append(taken)
        medians = {name: statistics.median(taken) / images * 1e6 for name, taken in times.items()}
        line = ", ".join(f"{name} {us:.0f} us ({us / medians['ours']:.2f})" for name, us in medians.items())
        ends = torch.cat((torch.arange(CHECKED), torch.arange(-CHECKED, 0))).to(device)
        found = zip(
            vectors[:, ends], codes[:, 0], residual_codes(vectors, codes, DEPTH, 1)[:, ends], strict=True
        )
        print(
            f"{images} images: {line}; of ids at both ends {statistics.mean(agreement(*stream) for stream in found):.4%} are float64's"
        )


if __name__ == "__main__":
    main()

"""Both streams' codes at the size of the 384-pixel model.

Run: python -m benchmarks.fused_quantizer [--device cuda] [--images 1 8 64]. Microseconds an image, launches
included, medians of interleaved repeats: the operator that encoding calls (on a GPU with Triton the fused
kernel), all distances as one matrix per depth, and the matrix products alone, on a GPU in float16 as in the
kernel. Needs the `bench` extra.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.models import default_device, hardware, seconds_in_turn
from benchmarks.quantizer import CHECKED, CODES, DEPTH, TOKENS, WIDTH, agreement, full_distances, trained
from dualtoken.model.precision import forbid_tf32
from dualtoken.model.quantize.residual_search import is_fused, residual_codes


def contestants(vectors: Tensor, codes: Tensor) -> dict[str, Callable[[], object]]:
    """Return the functions that are timed, for two streams' vectors (2, M, C) and codebooks (2, 1, K, C)."""
    dtype = torch.float16 if vectors.is_cuda else torch.float32
    rounded_vectors = vectors.to(dtype)
    rounded_codes = codes.to(dtype)
    products = rounded_vectors.new_empty(TOKENS, codes.shape[2])

    def quantise_with_full_distances() -> None:
        for stream_vectors, codebook in zip(vectors, codes[:, 0], strict=True):
            for image in stream_vectors.split(TOKENS):
                full_distances(image, codebook, move=False)

    def multiply() -> None:
        for stream_vectors, codebook in zip(rounded_vectors, rounded_codes[:, 0], strict=True):
            for image in stream_vectors.split(TOKENS):
                for _ in range(DEPTH):
                    torch.mm(image, codebook.T, out=products)

    return {
        "ours": lambda: residual_codes(vectors, codes, DEPTH, 1),
        "full distances": quantise_with_full_distances,
        f"{dtype} products alone": multiply,
    }


def main() -> None:
    """Print times, ratios and the share of codes that float64 gives, for each number of images at once."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 64] if on_gpu else [1])
    parser.add_argument("--repeats", type=int, default=20 if on_gpu else 3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    forbid_tf32()
    torch.manual_seed(0)
    first_quantizer, first_tokens = trained()
    second_quantizer, second_tokens = trained()
    codes = torch.stack([first_quantizer.codes[None], second_quantizer.codes[None]]).to(device)
    image = torch.cat([first_tokens, second_tokens]).to(device)
    print(f"{hardware(device)}: 2 streams, {TOKENS} tokens an image, {CODES} codes, ", end="")
    print(f"{WIDTH} channels, {DEPTH} depths")
    print("ours is", "the fused kernel" if is_fused(image, 1) else "the search in PyTorch")
    for images in arguments.images:
        print(compare(image.repeat(1, images, 1), codes, images, arguments.repeats))


def compare(vectors: Tensor, codes: Tensor, images: int, repeats: int) -> str:
    """Return the line of a number of images at once."""
    times = seconds_in_turn(contestants(vectors, codes), vectors.device, repeats)  # the first round compiles
    microseconds = {name: statistics.median(taken) / images * 1e6 for name, taken in times.items()}
    ours = microseconds["ours"]
    line = ", ".join(f"{name} {us:.0f} us ({us / ours:.2f})" for name, us in microseconds.items())
    share = statistics.mean(_agreement_at_both_ends(vectors, codes))
    return f"{images} images: {line}; of ids at both ends {share:.4%} are float64's"


def _agreement_at_both_ends(vectors: Tensor, codes: Tensor) -> list[float]:
    """Return, for each stream, the share of ids of the first and last tokens that float64 gives."""
    ends = torch.cat((torch.arange(CHECKED), torch.arange(-CHECKED, 0))).to(vectors.device)
    ids = residual_codes(vectors, codes, DEPTH, 1)
    shares: list[float] = []
    for stream in range(len(vectors)):
        shares.append(agreement(vectors[stream, ends], codes[stream, 0], ids[stream, ends]))
    return shares


if __name__ == "__main__":
    main()

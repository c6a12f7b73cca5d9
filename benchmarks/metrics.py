"""Metrics of an evaluation beside their peers on the same inputs, and as a share of decoding.

The pairs are those of `benchmarks.metric_pairs`. Peers that are not installed are named and left out. Calls
take turns, so that other load hits all alike. On one thread (OMP_NUM_THREADS=1) times are of the process's
own work, medians in either case.
Run: python -m benchmarks.metrics [RECIPE...]
"""

import argparse
import statistics
from collections.abc import Callable

import torch

from benchmarks.metric_pairs import (
    CHANNELS,
    CLASSES,
    CPU,
    IMAGES,
    SAMPLES,
    SIDE,
    Pair,
    clean_fid_pairs,
    frechet_pairs,
    pictures,
    reconstruction_pairs,
    zero_shot_pairs,
)
from benchmarks.models import hardware, seconds_in_turn, today
from dualtoken.model.metrics.reconstruction import squared_errors
from dualtoken.model.metrics.structural_similarity import (
    MIN_MULTI_SCALE_SIDE,
    ms_ssim,
    structural_similarity,
)
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.parse import load_recipe

FLOOR = "SSIM's products"


def measure(pair: Pair, rounds: int) -> str:
    """Time a metric and its peer in turn, and return a line of the table."""
    runs: dict[str, Callable[[], object]] = {"ours": pair.ours}
    difference = ""
    if pair.peer is not None:
        runs["peer"] = pair.peer
        difference = pair.difference(pair.ours(), pair.peer())
    times = seconds_in_turn(runs, CPU, rounds)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    line = f"{pair.name:26}{medians['ours'] * 1e3:12.1f}"
    if pair.peer is None:
        return line
    return f"{line}{medians['peer'] * 1e3:12.1f}{medians['peer'] / medians['ours']:8.2f}{difference:>20}"


def products_of_ssim(num_images: int, side: int) -> Callable[[], object]:
    """Return the two matrix products alone that SSIM averages an image's windows by, of the same shapes.

    They are what is left when all else costs nothing: other pieces of rows would give other last bits.
    """
    pieces = -(-side // 32)
    rows = [4 * 3 * (side + 10) * pieces, 4 * 3 * side * pieces]
    band = torch.rand(42, 32, dtype=torch.float64)
    factors = [torch.rand(count, 42, dtype=torch.float64) for count in rows]

    def products() -> None:
        for _ in range(num_images):
            for factor in factors:
                torch.mm(factor, band)

    return products


def shares_of_decoding(name: str, num_images: int, rounds: int) -> str:
    """Return what metrics without weights take, in percent of the time in which a recipe's model decodes."""
    config = load_recipe(name).tokenizer
    tokenizer = DualTokenizer(config).eval()
    images, references = pictures(num_images, config.image_size)
    shape = (num_images, config.grid_size, config.grid_size, config.pixel.depth)
    codes = torch.randint(config.pixel.num_codes, shape)
    runs: dict[str, Callable[[], object]] = {
        "decode": lambda: tokenizer.decode(codes),
        "PSNR": lambda: squared_errors(images, references),
        "SSIM": lambda: structural_similarity(images, references),
    }
    if config.image_size >= MIN_MULTI_SCALE_SIDE:
        runs["MS-SSIM"] = lambda: ms_ssim(images, references)
    runs[FLOOR] = products_of_ssim(num_images, config.image_size)
    times = seconds_in_turn(runs, CPU, rounds)
    medians = {metric: statistics.median(taken) for metric, taken in times.items()}
    decode = medians.pop("decode")
    floor = medians.pop(FLOOR) / decode
    shares = ", ".join(f"{metric} {taken / decode:.2%}" for metric, taken in medians.items())
    share = sum(medians.values()) / decode
    milliseconds = decode / num_images * 1e3
    return (
        f"{name}, {config.image_size} px, {milliseconds:.1f} ms an image: {shares}; {share:.1%} in all, "
        f"of which SSIM's matrix products {floor:.1%}"
    )


def main() -> None:
    """Print the table, and the shares of decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["scenes", "urls", "paper-256", "paper-384"])
    parser.add_argument("--images", type=int, default=IMAGES, help="images that are decoded at a time")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{today()}, {hardware(CPU)}; {IMAGES} images of {SIDE} px; ", end="")
    print(f"{SAMPLES} samples of {CHANNELS} channels; {CLASSES} classes; medians of {arguments.rounds}")
    print(f"{'':26}{'ours, ms':>12}{'peer, ms':>12}{'ratio':>8}{'largest difference':>20}")
    for pairs in (reconstruction_pairs, frechet_pairs, clean_fid_pairs, zero_shot_pairs):
        for pair in pairs():
            print(measure(pair, arguments.rounds), flush=True)
    print("share of decoding, by time:")
    for name in arguments.recipes:
        print(shares_of_decoding(name, arguments.images, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()

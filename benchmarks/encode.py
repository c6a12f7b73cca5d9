"""What encoding costs beside a full forward.

Run: python -m benchmarks.encode [--model paper] [--device cuda] [--batch-size 4] [--rounds 5]. Floating-point
operations, code searches included, are counted without running anything; times, and peak memory, are of the
paper's 384-pixel model (`paper`, some 25 s a round and image on two CPU cores) or of one with its proportions
and a sixth of its widths.
"""

import argparse
import resource
import statistics
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import PAPER_384, SMALL_192, default_device, hardware, seconds_in_turn, today
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.precision import forbid_tf32
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

MODELS = {"paper": PAPER_384, "small": SMALL_192}


def count(config: TokenizerConfig) -> dict[str, float]:
    """Return GFLOP an image of encoding and of a full forward, without running them.

    Counted are matrix products, convolutions and code searches.
    """
    with torch.device("meta"):
        tokenizer = DualTokenizer(config).eval().requires_grad_(False)
        images = torch.empty(1, 3, config.image_size, config.image_size)
    gflop: dict[str, float] = {}
    for name, run in {"encode": tokenizer.encode, "full": tokenizer}.items():
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=SEARCHES) as counter:
            run(images)
        gflop[name] = counter.get_total_flops() / 1e9
    return gflop


def _residual_flop(vectors: Sequence[int], codes: Sequence[int], depth: int, beam: int, **_: object) -> int:
    """Return the operations of a residual search, from the shapes of its arguments.

    Each depth takes the product of all codes with every sum that is kept: one sum at first, at most a beam of
    them after.
    """
    streams, num_vectors, width = vectors
    num_codes = codes[2]
    kept = 1
    searched = 0
    for _depth in range(depth):
        searched += kept
        kept = min(beam, kept * min(beam, num_codes))
    return 2 * streams * num_vectors * num_codes * width * searched


def _part_flop(vectors: Sequence[int], codes: Sequence[int], **_: object) -> int:
    """Return the operations of a search in parts: the products of each part's vectors with its codes."""
    parts, num_vectors, width = vectors
    return 2 * parts * num_vectors * codes[1] * width


SEARCHES = {torch.ops.dualtoken.residual_codes: _residual_flop, torch.ops.dualtoken.part_codes: _part_flop}
"""Operation counts of the operators that search for codes; scalar quantisers have no search."""


def measure(config: TokenizerConfig, device: torch.device, batch_size: int, rounds: int) -> None:
    """Print images a second of encoding and of a full forward, taking turns, and their ratio."""
    torch.manual_seed(0)
    tokenizer = DualTokenizer(config).eval().to(device)
    images = torch.rand(batch_size, 3, config.image_size, config.image_size, device=device) * 2 - 1
    runs: dict[str, Callable[[], object]] = {
        "encode": lambda: tokenizer.encode(images),
        "full": lambda: tokenizer(images),
    }
    peaks: dict[str, float] = {}
    with torch.no_grad():
        # Encoding first: the process's peak only grows. These calls warm up, too.
        for name, run in runs.items():
            peaks[name] = _peak_of(run, device)
        times = seconds_in_turn(runs, device, rounds, warm_up=False)
    print(f"{today()}, {hardware(device)}, {config.image_size} px, batch {batch_size}, float32")
    print(f"{'':8}{'images/s':>10}{'peak MB':>10}")
    for name, taken in times.items():
        print(f"{name:8}{batch_size / statistics.median(taken):10.2f}{peaks[name]:10.0f}")
    ratios = [full / encode for encode, full in zip(times["encode"], times["full"], strict=True)]
    print(f"a full forward takes {statistics.median(ratios):.2f} times as long ", end="")
    print(f"({min(ratios):.2f} to {max(ratios):.2f})")


def _peak_of(run: Callable[[], object], device: torch.device) -> float:
    """Call; return the most memory of a GPU meanwhile, or of the process until then, MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) / 1e6
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Count, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="which to time: paper on a GPU, small on a CPU")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, config in MODELS.items():
        gflop = count(config)
        print(f"{name}: encode {gflop['encode']:.1f} GFLOP an image, full {gflop['full']:.1f}, ", end="")
        print(f"{gflop['full'] / gflop['encode']:.2f} times")
    device = torch.device(arguments.device)
    forbid_tf32()
    model = arguments.model
    if model is None:
        model = "paper" if device.type == "cuda" else "small"
    measure(MODELS[model], device, arguments.batch_size, arguments.rounds)


if __name__ == "__main__":
    main()

"""What encoding costs beside a full forward: `python -m benchmarks.encode [--model paper] [--device cuda] [--batch-size 4] [--rounds 5]`.

Floating-point operations, code searches included, are counted without running anything; times, and peak memory, are of the paper's
384-pixel model (`paper`, some 25 s a round and image on two CPU cores) or of one with its proportions and a sixth of its widths.
"""

import argparse
import datetime as dt
import resource
import statistics
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import PAPER_384, SMALL_192, hardware, seconds
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.precision import forbid_tf32
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

MODELS = {"paper": PAPER_384, "small": SMALL_192}


def count(config: TokenizerConfig) -> dict[str, float]:
    """Return GFLOP an image of encoding and of a full forward, without running them: matrix products, convolutions, code searches."""
    with torch.device("meta"):
        tokenizer, images = (
            DualTokenizer(config).eval().requires_grad_(False),
            torch.empty(1, 3, config.image_size, config.image_size),
        )
    gflop = {}
    for name, run in {"encode": tokenizer.encode, "full": tokenizer}.items():
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=SEARCHES) as counter:
            run(images)
        gflop[name] = counter.get_total_flops() / 1e9
    return gflop


def _residual_flop(vectors: Sequence[int], codes: Sequence[int], depth: int, beam: int, **_: object) -> int:
    """Return the operations of each depth's products of all codes with the sums kept: one at first, at most a beam after."""
    (streams, num_vectors, width), num_codes = vectors, codes[2]
    kept, searched = 1, 0
    for _depth in range(depth):
        searched += kept
        kept = min(beam, kept * min(beam, num_codes))
    return 2 * streams * num_vectors * num_codes * width * searched


def _part_flop(vectors: Sequence[int], codes: Sequence[int], **_: object) -> int:
    """Return the operations of the products of each part's vectors with its codes."""
    parts, num_vectors, width = vectors
    return 2 * parts * num_vectors * codes[1] * width


SEARCHES = {torch.ops.dualtoken.residual_codes: _residual_flop, torch.ops.dualtoken.part_codes: _part_flop}
"""What the counter is told of the operators that search for codes; scalar quantisers have none."""


def measure(config: TokenizerConfig, device: torch.device, batch_size: int, rounds: int) -> None:
    """Print images a second of encoding and of a full forward, taking turns, and their ratio."""
    torch.manual_seed(0)
    tokenizer = DualTokenizer(config).eval().to(device)
    images = torch.rand(batch_size, 3, config.image_size, config.image_size, device=device) * 2 - 1
    work = {"encode": lambda: tokenizer.encode(images), "full": lambda: tokenizer(images)}
    taken: dict[str, list[float]] = {name: [] for name in work}
    peaks: dict[str, float] = {}
    with torch.no_grad():
        for name, run in work.items():  # once each before they are timed; encoding first, for its peak
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            run()
            peaks[name] = _peak(device)
        for _ in range(rounds):
            for name, run in work.items():
                taken[name].append(seconds(run, device))
    print(
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {hardware(device)}, {config.image_size} px, batch {batch_size}, float32"
    )
    print(f"{'':8}{'images/s':>10}{'peak MB':>10}")
    for name, times in taken.items():
        print(f"{name:8}{batch_size / statistics.median(times):10.2f}{peaks[name]:10.0f}")
    ratios = [full / encode for encode, full in zip(taken["encode"], taken["full"], strict=True)]
    print(
        f"a full forward takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def _peak(device: torch.device) -> float:
    """Return the most memory so far, MB: of the GPU since it was reset, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Count, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, help="which to time: paper on a GPU, small on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, config in MODELS.items():
        gflop = count(config)
        print(
            f"{name}: encode {gflop['encode']:.1f} GFLOP an image, full {gflop['full']:.1f}, {gflop['full'] / gflop['encode']:.2f} times"
        )
    device = torch.device(arguments.device)
    forbid_tf32()
    model = arguments.model or ("paper" if device.type == "cuda" else "small")
    measure(MODELS[model], device, arguments.batch_size, arguments.rounds)


if __name__ == "__main__":
    main()

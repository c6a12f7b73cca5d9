"""The reader of the trainings against WebDataset and against the reader that it replaced, in one run.

Run: python -m benchmarks.training_reader [--folder FOLDER] [--quick]. First samples a second of 256-pixel
JPEGs, with one and two decoding threads (worker processes, with WebDataset). Then seconds from nothing to the
first batch and the memory of a rank, of corpora of 10^4 to 10^9 samples, which are simulated
(`training_reader_data.py` says how). Each reader is a process of its own; rounds are interleaved, so that
other load hits all alike. Imports do not count; files are in the page cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.training_reader_data import WINDOW, CorpusShape, open_corpus

RATE_SHAPE = CorpusShape(num_shards=8, rows_per_shard=512, side=256, num_distinct=8, sparse=False)
"""Corpus whose samples are counted by the second."""
CONTESTANTS = (("ours", 1), ("ours", 2), ("webdataset", 1), ("webdataset", 2), ("former", 1))
ROWS_PER_SHARD = 4096
FORMER_MOST = 10**6
"""Samples of the largest corpus that the former reader is tried on: at 10^7 it takes a quarter of an hour."""


def main() -> None:
    """Print rates, ratios, start times and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="for the corpora, about 3 GB; kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=40, help="that are timed in each round")
    parser.add_argument(
        "--quick", action="store_true", help="leave the former reader out of the larger corpora"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reader-benchmark-") as temporary:
        folder = arguments.folder or Path(temporary)
        rates(folder / "rates", arguments.rounds, arguments.batches)
        starts(folder, quick=arguments.quick)


def rates(root: Path, rounds: int, num_batches: int) -> None:
    """Print samples a second of every reader, and ratios."""
    root.mkdir(parents=True, exist_ok=True)
    open_corpus(root, RATE_SHAPE)
    measured: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for reader, threads in CONTESTANTS:
            measured.setdefault((reader, threads), []).append(measure(reader, threads, root, num_batches))
    print(f"{RATE_SHAPE.side}-pixel JPEGs, batches of 64, medians of {rounds} rounds, samples a second:")
    ours = {clock: _median(measured["ours", 1], clock) for clock in ("wall_rate", "cpu_rate")}
    for (reader, threads), answers in measured.items():
        wall = _median(answers, "wall_rate")
        cpu = _median(answers, "cpu_rate")
        print(
            f"{reader:11} {threads} {wall:9,.0f} by the clock, {cpu:9,.0f} by processor time; "
            f"ours, one thread: {ours['wall_rate'] / wall:5.2f} and {ours['cpu_rate'] / cpu:5.2f} times that",
            flush=True,
        )


def starts(folder: Path, *, quick: bool) -> None:
    """Print the seconds to the first batch, and the memory of a rank, by the size of the corpus."""
    print("\nFirst batch of 64 and resident memory; shards of 4,096 samples of 64 pixels:")
    for num_samples in (10**4, 10**6, 10**7, 10**9):
        shape = CorpusShape(
            num_shards=-(-num_samples // ROWS_PER_SHARD),
            rows_per_shard=ROWS_PER_SHARD,
            side=64,
            num_distinct=min(WINDOW, -(-num_samples // ROWS_PER_SHARD)),
            sparse=num_samples > 10**7,
        )
        root = folder / f"starts-{num_samples}"
        root.mkdir(parents=True, exist_ok=True)
        open_corpus(root, shape)
        for reader, threads in CONTESTANTS:
            is_slow = reader == "former" and num_samples > (10**4 if quick else FORMER_MOST)
            is_absent = reader == "webdataset" and shape.sparse
            if threads > 1 or is_slow or is_absent:
                continue
            answer = measure(reader, threads, root, 0)
            print(
                f"{num_samples:13,} {reader:11} {answer['first_seconds']:7.2f} s, "
                f"{answer['first_cpu_seconds']:7.2f} s of processor time, "
                f"{answer['resident_mb']:6.0f} MB, of them {answer['added_mb']:6.0f} by the reader; "
                f"peak {answer['peak_mb']:6.0f} MB",
                flush=True,
            )
        index = next((root / "run/logs").glob("samples-*.arrow")).stat().st_size
        print(f"{'':13} index: {index:,} bytes, {index / num_samples:.4f} a sample", flush=True)


def measure(reader: str, threads: int, root: Path, num_batches: int) -> dict[str, float]:
    """Run a reader in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training_reader_readers", reader, str(threads)]
    command += [str(root), str(num_batches)]
    done = subprocess.run(  # noqa: S603
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _median(answers: list[dict[str, float]], name: str) -> float:
    return statistics.median(answer[name] for answer in answers)


if __name__ == "__main__":
    main()

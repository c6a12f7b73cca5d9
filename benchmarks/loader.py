"""The token loader on one core against WebDataset, LitData, MosaicML Streaming and HF datasets.

All read the same codes in the same run. Run: python -m benchmarks.loader [--peers-python PYTHON]. Each
contestant is a process of its own, kept warm; rounds are interleaved, so that other load hits all alike.
Rates are by processor seconds of the process, all threads, so that a loaded machine or a peer's waiting
changes little; wall seconds stand beside, and what a sample's time goes into (`loader_contest.py`). A peer
that cannot be imported by this Python (they come with the extra `bench`; mosaicml-streaming asks for an older
huggingface_hub than ours, so it needs an environment of its own) is run by PYTHON, or else left out by name.
See `loader_peers.py` for how each peer is set up.

Then: seconds to resume at a random point, of few shards and of 1,024, and the share of positions that packed
sequences use.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import loader_peers
from benchmarks.loader_contest import compare
from benchmarks.loader_data import write_captioned, write_codes, write_dataset, write_links
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.token_loader import TokenLoader
from dualtoken.pipelines.tokens.reader import TokenDataset

BATCH = loader_peers.BATCH
NUM_SHARDS = 1024
"""Shards of the larger dataset that a run is resumed on.

A shuffled batch has rows of nearly as many shards as it has rows.
"""
PACKINGS = ((16, 4096), (16, 8192), (27, 16_384), (27, 32_768))
"""Sides of an image's grid and capacities of a sequence that are packed."""


def main() -> None:
    """Print rates, ratios, resume times and packing efficiency."""
    if len(sys.argv) == 3 and sys.argv[1] == "ours":
        loader_peers.main(lambda _, folder: ours(folder))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=12_288)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0, help="that all run on")
    parser.add_argument("--peers-python", help="of an environment with the peers that this one lacks")
    parser.add_argument(
        "--folder", type=Path, help="for the data of all contestants, about 25 kB a row and peer; kept"
    )
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-") as temporary:
        folder = arguments.folder or Path(temporary)
        check_sum = write_codes(folder, arguments.rows)
        write_dataset(folder, arguments.rows)
        expected = {"samples": arguments.rows, "total": check_sum}
        compare(folder, _commands(arguments.peers_python), arguments.rounds, expected)
        resume(folder)
        packing(folder)


def ours(folder: Path) -> loader_peers.Epoch:
    """Read our own format; checksums are checked when a shard is first touched."""
    dataset = TokenDataset(str(folder / "ours"))

    def epoch(shuffled: bool) -> loader_peers.Batches:
        for batch in TokenLoader(LoadPlan(datasets=(dataset,), shuffle=shuffled), BATCH):
            assert batch.semantic is not None
            assert batch.pixel is not None
            yield _TwoStreams(batch.semantic.numpy(), batch.pixel.numpy())

    return epoch


class _TwoStreams:
    """Two arrays that are indexed like the peers' one, as far as the count and the check sum need it."""

    def __init__(self, *streams: Any) -> None:  # noqa: ANN401
        self.streams = [stream.reshape(-1, *loader_peers.SHAPE[1:]) for stream in streams]

    def __len__(self) -> int:
        return len(self.streams[0])

    def __getitem__(self, index: tuple[Any, ...]) -> Any:  # noqa: ANN401
        rows, stream, *rest = index
        return self.streams[stream][(rows, *rest)]


def _commands(peers_python: str | None) -> dict[str, list[str]]:
    """Return the start of the command of each contestant that a Python has; name those that are left out."""
    commands = {"ours": [sys.executable, "-m", "benchmarks.loader"]}
    for name in loader_peers.PEERS:
        package = name.partition("_")[0]
        if _has_package(sys.executable, package):
            commands[name] = [sys.executable, "-P", loader_peers.__file__]
        elif peers_python and _has_package(peers_python, package):
            commands[name] = [peers_python, "-P", loader_peers.__file__]
        else:
            print(f"{name}: left out, neither this Python nor --peers-python has it")
    return commands


def _has_package(python: str, name: str) -> bool:
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([python, "-c", look], check=False, cwd="/").returncode == 0  # noqa: S603


def resume(folder: Path) -> None:
    """Print the seconds from a state to its first batch, of few shards and of many.

    Everything is opened anew, and checksums are checked.
    """
    for url in (str(folder / "ours"), write_links(folder, NUM_SHARDS)):
        random = np.random.default_rng(0)
        seconds = [_seconds_to_resume(url, int(random.integers(10**9))) for _ in range(5)]
        num_shards = len(TokenDataset(url).shards())
        size = (Path(url) / "data/00000.arrow").stat().st_size
        print(
            f"resume at a random one of 10^9 samples of {num_shards:,} shards of {size / 1e6:.0f} MB, "
            f"in the page cache, checksums of those that the first batch is of included: "
            f"median {statistics.median(seconds):.3f} s, at most {max(seconds):.3f} s"
        )


def _seconds_to_resume(url: str, samples: int) -> float:
    """Measure from the state of a run that has read so many samples to its next batch."""
    plan = LoadPlan(datasets=(TokenDataset(url),), weights={0: [1]}, seed=1)
    state = {**TokenLoader(plan, BATCH).state_dict(None), "samples": samples}
    start = time.perf_counter()
    fresh_plan = LoadPlan(datasets=(TokenDataset(url),), weights={0: [1]}, seed=1)
    loader = TokenLoader(fresh_plan, BATCH)
    loader.load_state_dict(state)
    next(iter(loader))
    return time.perf_counter() - start


def packing(folder: Path) -> None:
    """Print the share of positions used, the packed loader's rate and the time to resume it."""
    for grid, capacity in PACKINGS:
        dataset = TokenDataset(write_captioned(folder, grid, 8192))
        plan = PackPlan(
            load=LoadPlan(datasets=(dataset,), seed=1),
            capacity=capacity,
            tokenize=lambda text: np.frombuffer(text.encode(), np.uint8),
            markers=Markers(image_start=1, image_end=2, start=3, end=4),
        )
        num_used = 0
        num_sequences = 0
        state = None
        start = time.process_time()
        for number, batch in enumerate(PackedLoader(plan, 4)):
            lengths = batch.cu_seqlens.diff()
            num_used += int(lengths[batch.segments >= 0].sum())
            num_sequences += len(batch.text)
            if number == 20:
                state = PackedLoader(plan, 4).state_dict(batch)
        rate = len(dataset) / (time.process_time() - start)
        assert state is not None
        start = time.perf_counter()
        loader = PackedLoader(plan, 4)
        loader.load_state_dict(state)
        next(iter(loader))
        seconds = time.perf_counter() - start
        share = num_used / (num_sequences * capacity)
        print(
            f"packed, images of {grid * grid} positions, {capacity} a sequence: "
            f"{share:.2%} of positions used, {rate:,.0f} samples a second by cpu, resumed in {seconds:.3f} s"
        )


if __name__ == "__main__":
    main()

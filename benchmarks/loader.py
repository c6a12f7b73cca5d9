"""The token loader on one core against WebDataset, LitData, MosaicML Streaming and HF datasets: the same codes, in the same run.

Run: python -m benchmarks.loader [--peers-python PYTHON]. Each contestant is a process of its own, kept warm; rounds are
interleaved, so that other load hits all alike. Rates are by processor seconds of the process, all threads, so that a loaded
machine or a peer's waiting changes nothing; wall seconds stand beside. A peer that cannot be imported by this Python (they come with the
extra `bench`; mosaicml-streaming asks for an older huggingface_hub than ours, so it needs an environment of its own) is run by
PYTHON, or else left out by name. See `loader_peers.py` for how each peer is set up.

Then: seconds to resume at a random point, of few shards and of 1,024, and the share of positions that packed sequences use.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch

from benchmarks import loader_peers
from benchmarks.loader_data import captioned, write_codes, write_dataset, write_links
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.token_loader import TokenLoader
from dualtoken.pipelines.tokens.reader import TokenDataset

MODES = ("sequential", "shuffled")
BATCH = loader_peers.BATCH
MANY = 1024
"""Shards of the larger dataset that a run is resumed on: a batch shuffled over them is of about as many as it has rows."""


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
    parser.add_argument(
        "--peers-python", default=None, help="of an environment with the peers that this one lacks"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="for the data of all contestants, about 25 kB a row and peer; kept",
    )
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="loader-benchmark-"))
        )
        expected = write_codes(folder, given.rows)
        write_dataset(folder, given.rows)
        compare(folder, given.rounds, given.peers_python, (given.rows, expected), stack)
        resume(folder)
        packing(folder)


def ours(folder: Path) -> loader_peers.Epoch:
    """Read our own format, checksums looked at on first touch."""
    dataset = TokenDataset(str(folder / "ours"))

    def epoch(shuffled: bool) -> loader_peers.Batches:
        for batch in TokenLoader(LoadPlan(datasets=(dataset,), shuffle=shuffled), BATCH):
            assert batch.semantic is not None
            assert batch.pixel is not None
            yield _Both(batch.semantic.numpy(), batch.pixel.numpy())

    return epoch


class _Both:
    """Two streams as the peers' one array, as far as the count of samples and the check need it."""

    def __init__(self, *streams: Any) -> None:  # noqa: ANN401
        self.streams = [stream.reshape(-1, *loader_peers.SHAPE[1:]) for stream in streams]

    def __len__(self) -> int:
        return len(self.streams[0])

    def __getitem__(self, at: tuple[Any, ...]) -> Any:  # noqa: ANN401
        rows, stream, *rest = at
        return self.streams[stream][(rows, *rest)]


def compare(
    folder: Path,
    rounds: int,
    peers_python: str | None,
    expected: tuple[int, int],
    stack: contextlib.ExitStack,
) -> None:
    """Time all contestants, and print medians and ratios."""
    running = {
        "ours": stack.enter_context(Contestant([sys.executable, "-m", "benchmarks.loader"], "ours", folder))
    }
    for name in loader_peers.PEERS:
        pythons = [
            python
            for python in (sys.executable, peers_python)
            if python and _has(python, name.partition("_")[0])
        ]
        if not pythons:
            print(f"{name}: left out, neither this Python nor --peers-python has it")
            continue
        running[name] = stack.enter_context(
            Contestant([pythons[0], "-P", loader_peers.__file__], name, folder)
        )
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds + 1):  # the first one warms up
        for mode in MODES:
            for name, contestant in running.items():
                epoch = contestant.epoch(mode)
                assert (epoch["samples"], epoch["total"]) == expected, (
                    f"{name} does not give each sample once: {epoch}, {expected}"
                )
                if number:
                    found.setdefault((name, mode), []).append(epoch)
    print(
        f"{expected[0]} samples of 729 x 8 x 2 codes, batches of {BATCH}, one core, warm, {rounds} rounds; samples a second, medians"
    )
    print(
        f"{'':12}"
        + "".join(f"{mode + ', ' + clock:>20}" for mode in MODES for clock in ("cpu", "wall"))
        + f"{'ours is, by cpu':>24}"
    )
    rates = {
        (name, mode, clock): statistics.median(epoch["samples"] / epoch[clock] for epoch in epochs)
        for (name, mode), epochs in found.items()
        for clock in ("cpu", "wall")
    }
    for name in running:
        line = "".join(f"{rates[name, mode, clock]:20,.0f}" for mode in MODES for clock in ("cpu", "wall"))
        print(
            f"{name:12}{line}"
            + "".join(f"{rates['ours', mode, 'cpu'] / rates[name, mode, 'cpu']:11.1f} x" for mode in MODES)
        )
    for mode in MODES:
        peers = [(rates[name, mode, "cpu"], name) for name in running if name in loader_peers.DOCUMENTED]
        if peers:
            print(
                f"{mode}: {rates['ours', mode, 'cpu'] / max(peers)[0]:.1f} times the best peer at its documented best, {max(peers)[1]}"
            )


class Contestant:
    """A process that reads epochs when told."""

    def __init__(self, command: list[str], name: str, folder: Path) -> None:
        quiet = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        self._log = (folder / f"{name}.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(  # noqa: S603
            [*command, name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=quiet,
        )
        self._name = name

    def __enter__(self) -> Self:
        assert self._answer() == {"ready": self._name}
        return self

    def __exit__(self, *_: object) -> None:
        _pipe(self._process.stdin).close()
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def epoch(self, mode: str) -> dict[str, float]:
        """Read one epoch; return its samples, check sum and seconds."""
        pipe = _pipe(self._process.stdin)
        pipe.write(mode + "\n")
        pipe.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in _pipe(self._process.stdout):  # a peer may print lines of its own
            with contextlib.suppress(json.JSONDecodeError):
                if isinstance(found := json.loads(line), dict):
                    return found
        raise RuntimeError(f"{self._name} ended: see {self._log.name}")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _has(python: str, name: str) -> bool:
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([python, "-c", look], check=False, cwd="/").returncode == 0  # noqa: S603


def resume(folder: Path) -> None:
    """Print the seconds from a state to its first batch, everything opened anew, checksums included, of few shards and of many."""
    for url in (str(folder / "ours"), write_links(folder, MANY)):
        random, seconds, num_shards = np.random.default_rng(0), [], 0
        for _ in range(5):
            plan = LoadPlan(datasets=(TokenDataset(url),), weights={0: [1]}, seed=1)
            state = {**TokenLoader(plan, BATCH).state_dict(None), "samples": int(random.integers(10**9))}
            start = time.perf_counter()
            dataset = TokenDataset(url)
            loader = TokenLoader(LoadPlan(datasets=(dataset,), weights={0: [1]}, seed=1), BATCH)
            loader.load_state_dict(state)
            next(iter(loader))
            seconds.append(time.perf_counter() - start)
            num_shards = len(dataset.shards())
        size = (Path(url) / "data/00000.arrow").stat().st_size
        print(
            f"resume at a random one of 10^9 samples of {num_shards:,} shards of {size / 1e6:.0f} MB, "
            f"in the page cache, checksums of those that the first batch is of included: median {statistics.median(seconds):.3f} s, "
            f"at most {max(seconds):.3f} s"
        )


def packing(folder: Path) -> None:
    """Print the share of positions used, the packed loader's rate and the time to resume it."""
    for grid, capacity in ((16, 4096), (16, 8192), (27, 16_384), (27, 32_768)):
        dataset = TokenDataset(captioned(folder, grid, 8192))
        load = LoadPlan(datasets=(dataset,), seed=1)
        markers = Markers(image_start=1, image_end=2, start=3, end=4)
        plan = PackPlan(
            load=load,
            capacity=capacity,
            tokenize=lambda text: np.frombuffer(text.encode(), np.uint8),
            markers=markers,
        )
        used, sequences, state, start = 0, 0, None, time.process_time()
        for number, batch in enumerate(PackedLoader(plan, 4)):
            lengths, documents = batch.cu_seqlens.diff(), batch.segments >= 0
            used, sequences = used + int(lengths[documents].sum()), sequences + len(batch.text)
            state = PackedLoader(plan, 4).state_dict(batch) if number == 20 else state
        rate, start = len(dataset) / (time.process_time() - start), time.perf_counter()
        assert state is not None
        loader = PackedLoader(plan, 4)
        loader.load_state_dict(state)
        next(iter(loader))
        print(
            f"packed, images of {grid * grid} positions, {capacity} a sequence: {used / (sequences * capacity):.2%} of positions used, "
            f"{rate:,.0f} samples a second by cpu, resumed in {time.perf_counter() - start:.3f} s"
        )


if __name__ == "__main__":
    main()

"""Lets loaders read the same codes in turn, and prints their rates with ranges, and what bounds them.

Beside each round a plain copy of the same codes is timed, on the same core, batch by batch out of the page
cache: no loader that gives a batch memory of its own takes less. So a loader's processor time of a sample is
told in three parts: that copy, what the kernel takes (page faults, reading), and the rest, which is the
interpreter's, and that of all other copies.
"""

import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

from benchmarks import loader_peers

MODES = loader_peers.MODES
BATCH = loader_peers.BATCH
SAMPLE_BYTES = 2 * math.prod(loader_peers.SHAPE)


class Round(NamedTuple):
    """One epoch of a contestant, and the copy that was timed beside it."""

    rate: float
    """Samples a second of processor time."""
    wall_rate: float
    """Samples a second by the clock."""
    system: float
    """Microseconds of a sample that the kernel took."""
    copy: float
    """Microseconds of processor time of a plain copy of a sample."""


Rounds = dict[tuple[str, str], list[Round]]
"""Rounds by contestant and mode."""


def compare(folder: Path, commands: Mapping[str, list[str]], rounds: int, expected: dict[str, int]) -> None:
    """Time contestants, given with their commands, and print medians, ranges and ratios.

    `expected` holds the number of samples and the check sum of an epoch.
    """
    with contextlib.ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        for name, command in commands.items():
            contestants[name] = stack.enter_context(Contestant(command, name, folder))
        measured = _measure(contestants, rounds, expected, folder)
    print(f"{expected['samples']} samples of 729 x 8 x 2 codes, batches of {BATCH}, one core, warm, ", end="")
    print(f"{rounds} rounds: medians (lowest to highest)")
    copies = [one.copy for one in measured["ours", MODES[0]]]
    bandwidth = _range([SAMPLE_BYTES / copy / 1000 for copy in copies], ".1f")
    print(f"a plain copy of the {SAMPLE_BYTES:,} bytes of a sample: {bandwidth} GB/s")
    for mode in MODES:
        _print_mode(mode, measured, list(contestants))
    peers = [name for name in contestants if name in loader_peers.DOCUMENTED]
    for mode in MODES:
        _print_ratio_to_best_peer(mode, measured, peers)


def _measure(
    contestants: Mapping[str, "Contestant"], rounds: int, expected: dict[str, int], folder: Path
) -> Rounds:
    """Let the contestants read epochs in turn. The first round warms up."""
    measured: Rounds = {}
    for number in range(rounds + 1):
        copy = copy_seconds(folder) / expected["samples"]
        for mode, (name, contestant) in itertools.product(MODES, contestants.items()):
            epoch = contestant.epoch(mode)
            found = {"samples": epoch["samples"], "total": epoch["total"]}
            assert found == expected, f"{name} does not give each sample once: {epoch}, {expected}"
            if number == 0:
                continue
            samples = epoch["samples"]
            told = Round(
                rate=samples / epoch["cpu"],
                wall_rate=samples / epoch["wall"],
                system=1e6 * epoch["system"] / samples,
                copy=1e6 * copy,
            )
            measured.setdefault((name, mode), []).append(told)
    return measured


def copy_seconds(folder: Path) -> float:
    """Return the processor seconds of a copy of all codes, batch by batch, into memory that is used again."""
    codes = loader_peers.codes(folder)
    out = np.empty((BATCH, *codes.shape[1:]), codes.dtype)
    # Pages are mapped before the clock runs, as those of the contestants are after their first round.
    codes[:, 0, 0, 0].sum()
    start = time.process_time()
    for first in range(0, len(codes), BATCH):
        rows = codes[first : first + BATCH]
        np.copyto(out[: len(rows)], rows)
    return time.process_time() - start


def _print_mode(mode: str, measured: Rounds, names: Sequence[str]) -> None:
    print(f"\n{mode}")
    columns = (
        "samples/s by cpu",
        "by the clock",
        "ours is, by cpu",
        "of a copy's speed",
        "us: copy + kernel + rest",
    )
    print(f"{'':16}" + "".join(f"{column:>30}" for column in columns))
    for name in names:
        told = measured[name, mode]
        rates = _range([one.rate for one in told], ",.0f")
        wall_rates = _range([one.wall_rate for one in told], ",.0f")
        ratios = _range(_ratios(measured, mode, name), ".1f")
        shares = _range([one.rate * one.copy / 1e6 for one in told], ".0%")
        print(f"{name:16}{rates:>30}{wall_rates:>30}{ratios:>30}{shares:>30}{_parts(told):>30}")


def _ratios(measured: Rounds, mode: str, peer: str) -> list[float]:
    """Return how many times as fast ours was in each round, by processor time."""
    pairs = zip(measured["ours", mode], measured[peer, mode], strict=True)
    return [ours.rate / other.rate for ours, other in pairs]


def _parts(told: Sequence[Round]) -> str:
    """Tell what a sample's processor time goes into; the rest is below 0 where less than a copy is made."""
    copy = statistics.median(one.copy for one in told)
    system = statistics.median(one.system for one in told)
    rest = statistics.median(1e6 / one.rate - one.system - one.copy for one in told)
    return f"{copy:.1f} + {system:.1f} + {rest:.1f}"


def _range(values: Sequence[float], form: str) -> str:
    """Tell a median, and the lowest and highest value."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _print_ratio_to_best_peer(mode: str, measured: Rounds, peers: Sequence[str]) -> None:
    if not peers:
        return
    medians: dict[str, float] = {}
    for peer in peers:
        medians[peer] = statistics.median(one.rate for one in measured[peer, mode])
    best = max(medians, key=medians.__getitem__)
    ratios = _range(_ratios(measured, mode, best), ".1f")
    print(f"{mode}: {ratios} times the best peer at its documented best, {best}")


class Contestant:
    """A process that reads an epoch when told."""

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
        """Return the next JSON object that the process prints; a peer may print lines of its own."""
        for line in _pipe(self._process.stdout):
            with contextlib.suppress(json.JSONDecodeError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer
        raise RuntimeError(f"{self._name} ended: see {self._log.name}")


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream

"""What the pretokenize stage costs beside its encoding.

Run: python -m benchmarks.pretokenize [--rows 1024] [--rounds 5] [--side 64]. The peer is a plain loop in one
process that reads, decodes and encodes the same shards, and writes nothing. Both run on one thread of
PyTorch, taking turns; two workers are two processes, beside which two loops run at once show what the machine
has to give while others use it. Then the writer alone, in a process of its own, and its memory.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.commit import run_unit, upload
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.tokens.facts import TokenizerIdentity
from dualtoken.pipelines.tokens.shards import TokenShardWriter, token_schema

MEGABYTE = 1e6
TINY_SHARDS = 12
"""Number of shards of one image, which show what a shard costs beside its rows."""
WRITER_ROWS = 4096
"""Rows of a full shard of the paper's 729 positions."""
WRITER_BATCH = 64
"""Rows of a batch as it comes from the encoder."""
SPAWN = multiprocessing.get_context("spawn")


class Taken(NamedTuple):
    """Time that a piece of work took, seconds."""

    wall: float
    cpu: float
    """Processor time of the processes that did it, all threads."""


def taken(work: Callable[[], float | None]) -> Taken:
    """Run once and measure; work that other processes do returns their processor time."""
    wall = time.perf_counter()
    cpu = time.process_time()
    cpu_of_others = work()
    wall_seconds = time.perf_counter() - wall
    if cpu_of_others is not None:
        return Taken(wall_seconds, cpu_of_others)
    return Taken(wall_seconds, time.process_time() - cpu)


def plain_loop(job: StageJob, tokenizer: Any, units: Sequence[Unit]) -> None:  # noqa: ANN401  (imports torch late)
    """Read, decode and encode, one after the other."""
    from dualtoken.pipelines.core.tables import read_table  # noqa: PLC0415
    from dualtoken.pipelines.images.decoding import decode_rgb  # noqa: PLC0415
    from dualtoken.pipelines.images.samples import batched, kept_samples, open_image_shard  # noqa: PLC0415

    for unit in units:
        shard = open_image_shard(job.input("download"), unit.id, Path(job.folder))
        rows = kept_samples(shard, read_table(job.input("filter"), f"{unit.id}.parquet"))
        for batch in batched(rows, job.recipe.pretokenize.batch_size):
            tokenizer.encode([decode_rgb(shard.image(row.row)) for row in batch])


def do_units(job: StageJob, worker: Any, units: Sequence[Unit]) -> None:  # noqa: ANN401
    """Do units anew, committed as on any executor."""
    from benchmarks.token_inputs import forget_outputs  # noqa: PLC0415

    forget_outputs(job)
    for unit in units:
        run_unit(job, worker, unit)


def _serve(pipe: Connection, job: StageJob) -> None:
    """Do the work that comes through the pipe, and answer with this process's time for it.

    PyTorch has one thread.
    """
    from dualtoken.pipelines.inference.networks import open_tokenizer  # noqa: PLC0415
    from dualtoken.pipelines.tokens.pretokenize import Worker  # noqa: PLC0415

    worker = Worker(job)
    tokenizer = open_tokenizer(job)
    pipe.send("ready")
    while True:
        order = pipe.recv()
        if order is None:
            return
        kind, units = order
        started = time.process_time()
        if kind == "loop":
            plain_loop(job, tokenizer, units)
        else:
            for unit in units:
                run_unit(job, worker, unit)
        pipe.send(time.process_time() - started)


class _Pair:
    """Two processes that share a job's units."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        for _ in range(2):
            own_end, other_end = SPAWN.Pipe()
            process = SPAWN.Process(target=_serve, args=(other_end, job), daemon=True)
            process.start()
            assert own_end.recv() == "ready"
            self._processes.append(process)
            self._pipes.append(own_end)

    def run(self, kind: str, units: Sequence[Unit]) -> float:
        """Do units as "loop" or "stage"; return the time that both processes worked, seconds."""
        from benchmarks.token_inputs import forget_outputs  # noqa: PLC0415

        forget_outputs(self._job)
        self._pipes[0].send((kind, units[::2]))
        self._pipes[1].send((kind, units[1::2]))
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        """End both processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


Times = dict[str, list[Taken]]
"""Times of each round by kind of work."""


def stage(job: StageJob, rounds: int) -> None:
    """Print images a second of loops and workers, one and two of them, and the ratios."""
    large = [unit for unit in job.units if unit.rows > 1]
    small = [unit for unit in job.units if unit.rows == 1]
    times = _measure(job, large, small, rounds)
    print(f"{len(large)} shards of {large[0].rows}, {job.recipe.tokenizer.image_size} px, ", end="")
    print(f"{rounds} rounds; images a second, median")
    num_images = sum(unit.rows for unit in large)
    for name in ("plain loop", "one worker", "two loops", "two workers"):
        median = statistics.median(round_time.wall for round_time in times[name])
        print(f"  {name:12}{num_images / median:8.0f}")
    _print_ratios(times)
    costs: list[float] = []
    for loop, worker in zip(times["loop, shards of 1"], times["worker, shards of 1"], strict=True):
        costs.append(1e3 * (worker.wall - loop.wall) / len(small))
    print(f"  fixed cost per shard {statistics.median(costs):.0f} ms ", end="")
    print(f"({min(costs):.0f} to {max(costs):.0f}; bar: under 150)")


def _measure(job: StageJob, large: Sequence[Unit], small: Sequence[Unit], rounds: int) -> Times:
    """Let all kinds of work take turns; the first round warms up."""
    from dualtoken.pipelines.inference.networks import open_tokenizer  # noqa: PLC0415
    from dualtoken.pipelines.tokens.pretokenize import Worker  # noqa: PLC0415

    tokenizer = open_tokenizer(job)
    worker = Worker(job)
    pair = _Pair(job)
    work: dict[str, Callable[[], float | None]] = {
        "plain loop": lambda: plain_loop(job, tokenizer, large),
        "one worker": lambda: do_units(job, worker, large),
        "two loops": lambda: pair.run("loop", large),
        "two workers": lambda: pair.run("stage", large),
        "loop, shards of 1": lambda: plain_loop(job, tokenizer, small),
        "worker, shards of 1": lambda: do_units(job, worker, small),
    }
    times: Times = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            round_time = taken(run)
            if number > 0:
                times[name].append(round_time)
    pair.close()
    return times


def _print_ratios(times: Times) -> None:
    loop = times["plain loop"]
    two_loops = times["two loops"]
    worker = times["one worker"]
    two_workers = times["two workers"]
    _print_ratio("one worker over the loop", _wall_ratios(loop, worker), 0.90)
    _print_ratio("the same by CPU time", _cpu_ratios(loop, worker), 0.90)
    halves = [ratio / 2 for ratio in _wall_ratios(loop, two_workers)]
    _print_ratio("two workers over twice the loop", halves, 0.85)
    _print_ratio("two workers over two loops at once", _wall_ratios(two_loops, two_workers), 0.85)
    _print_ratio("the same by CPU time", _cpu_ratios(two_loops, two_workers), 0.85)


def _wall_ratios(one: list[Taken], other: list[Taken]) -> list[float]:
    """Return by what factor the other is faster by the clock, in each round."""
    return [first.wall / second.wall for first, second in zip(one, other, strict=True)]


def _cpu_ratios(one: list[Taken], other: list[Taken]) -> list[float]:
    """Return by what factor the other takes less processor time, in each round."""
    return [first.cpu / second.cpu for first, second in zip(one, other, strict=True)]


def _print_ratio(name: str, values: list[float], bar: float) -> None:
    median = statistics.median(values)
    print(f"  {name}: {median:.2f} ({min(values):.2f} to {max(values):.2f}; bar: {bar:.2f})")


class WriterFigures(NamedTuple):
    """Figures of the writer, from a process of its own."""

    rates: dict[str, list[float]]
    """MB/s of each round by what is counted."""
    memory_before: float
    memory_peak: float
    """Resident memory of the process, MB."""


def _measure_writer(pipe: Connection, folder: str, rounds: int) -> None:
    """Measure the writer in this process, which has never held a model."""
    config = load_recipe("paper-384").tokenizer
    schema = token_schema(config, TokenizerIdentity("0" * 12, "0" * 64), "none")
    width = config.grid_size**2 * config.pixel.depth
    random = np.random.default_rng(0)
    codes = random.integers(0, config.pixel.num_codes, (2, WRITER_BATCH, width)).astype(np.uint16)
    batches: list[list[bytes]] = []
    for first in range(0, WRITER_ROWS, WRITER_BATCH):
        batches.append([row.to_bytes(16, "big") for row in range(first, first + WRITER_BATCH)])
    store = Store(f"{folder}/store")
    scratch = Path(folder) / "scratch"
    memory_before = _resident_memory()
    rates: dict[str, list[float]] = {"to scratch": [], "the same by CPU time": [], "committed": []}
    for number in range(rounds + 1):  # the first round warms up
        path = scratch / f"{number}.arrow"
        wall = time.perf_counter()
        cpu = time.process_time()
        with TokenShardWriter(path, schema) as shard:
            for keys in batches:
                shard.append(keys, codes[0], codes[1])
        written = time.perf_counter() - wall
        worked = time.process_time() - cpu
        upload(store, scratch, path.name, shard.digest)
        committed = time.perf_counter() - wall
        if number > 0:
            megabytes = shard.digest.bytes / MEGABYTE
            rates["to scratch"].append(megabytes / written)
            rates["the same by CPU time"].append(megabytes / worked)
            rates["committed"].append(megabytes / committed)
        store.remove(path.name)
    memory_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    pipe.send(WriterFigures(rates, memory_before, memory_peak))


def _resident_memory() -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e3
    raise ValueError("/proc/self/status has no VmRSS")


def writer(folder: Path, rounds: int) -> None:
    """Print megabytes a second of codes written with their checksums, and the memory that it takes."""
    own_end, other_end = SPAWN.Pipe()
    process = SPAWN.Process(target=_measure_writer, args=(other_end, str(folder), rounds))
    process.start()
    figures: WriterFigures = own_end.recv()
    process.join()
    print(f"writer, {WRITER_ROWS} rows of 729 x 8 x 2 codes in batches of {WRITER_BATCH}, ", end="")
    print("SHA-256 and xxh3 included, MB/s")
    for name, values in figures.rates.items():
        median = statistics.median(values)
        print(f"  {name:22}{median:6.0f} ({min(values):.0f} to {max(values):.0f}; bar: 500)")
    added = figures.memory_peak - figures.memory_before
    print(f"  peak memory {figures.memory_peak:.0f} MB of the whole process, ", end="")
    print(f"{added:.0f} MB over what it held before (bar: under 300)")


def main() -> None:
    """Measure the writer, then the stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024, help="of a shard")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--side", type=int, default=64, help="of a stored image, pixels")
    parser.add_argument("--format", choices=["png", "jpg"], default="png")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="scenes", help="whose tokenizer encodes, untrained")
    parser.add_argument("--only", choices=["writer", "stage"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dualtoken-bench-") as folder:
        if arguments.only != "stage":
            writer(Path(folder), 3 * arguments.rounds)
        if arguments.only != "writer":
            _prepare_and_run_stage(Path(folder) / "run", arguments)


def _prepare_and_run_stage(folder: Path, arguments: argparse.Namespace) -> None:
    import torch  # noqa: PLC0415  (the writer's process must not have it)

    from benchmarks.models import default_device, hardware, today  # noqa: PLC0415
    from benchmarks.token_inputs import make_job  # noqa: PLC0415

    torch.set_num_threads(1)
    device = torch.device(default_device())
    print(f"{today()}, {hardware(device)}")
    shard_rows = (arguments.rows,) * arguments.shards + (1,) * TINY_SHARDS
    recipe = load_recipe(arguments.recipe, [f"cluster.gpus_per_worker={int(device.type == 'cuda')}"])
    job = make_job(recipe, folder, shard_rows, arguments.side, arguments.format)
    stage(job, arguments.rounds)


if __name__ == "__main__":
    main()

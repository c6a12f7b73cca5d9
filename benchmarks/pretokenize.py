"""What the pretokenize stage costs beside its encoding: `python -m benchmarks.pretokenize [--rows 1024] [--rounds 5] [--side 64]`.

The peer is a plain loop in one process that reads, decodes and encodes the same shards, and writes nothing. Both run on one
thread of PyTorch, taking turns; two workers are two processes, beside which two loops run at once show what the machine has to give
while others use it. Then the writer alone, in a process of its own, and its memory.
"""

import argparse
import datetime as dt
import multiprocessing as mp
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
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
"""Of one image, to see what a shard costs beside its rows."""
WRITER_ROWS, WRITER_BATCH = 4096, 64
"""A full shard of the paper's 729 positions, in batches as they come from the encoder."""


class Taken(NamedTuple):
    """What a piece of work took, seconds."""

    wall: float
    cpu: float
    """Of the processes that did it, all threads."""


def taken(work: Callable[[], float | None]) -> Taken:
    """Run once and measure; work of other processes says itself what they took."""
    wall, cpu = time.perf_counter(), time.process_time()
    others = work()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu if others is None else others)


def plain_loop(job: StageJob, tokenizer: Any, units: tuple[Unit, ...]) -> None:  # noqa: ANN401  (imports torch late)
    """Read, decode and encode, one after the other."""
    from dualtoken.pipelines.core.tables import read_table  # noqa: PLC0415
    from dualtoken.pipelines.images.samples import batched, decode_rgb, kept_samples, open_image_shard  # noqa: PLC0415

    for unit in units:
        shard = open_image_shard(job.input("download"), unit.id, Path(job.folder))
        rows = kept_samples(shard, read_table(job.input("filter"), f"{unit.id}.parquet"))
        for batch in batched(rows, job.recipe.pretokenize.batch_size):
            tokenizer.encode([decode_rgb(shard.image(row.row)) for row in batch])


def do_units(job: StageJob, worker: Any, units: tuple[Unit, ...]) -> None:  # noqa: ANN401
    """Do units anew, committed as on any executor."""
    from benchmarks.token_inputs import forget_outputs  # noqa: PLC0415

    forget_outputs(job)
    for unit in units:
        run_unit(job, worker, unit)


def _work(pipe: Connection, job: StageJob) -> None:
    """Do what comes through the pipe, on one thread of PyTorch, and say what it took of this process's time."""
    from dualtoken.pipelines.inference.networks import open_tokenizer  # noqa: PLC0415
    from dualtoken.pipelines.tokens.pretokenize import Worker  # noqa: PLC0415

    worker, tokenizer = Worker(job), open_tokenizer(job)
    pipe.send(0.0)
    while said := pipe.recv():
        kind, units = said
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
        self._job, context = job, mp.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            self._processes.append(context.Process(target=_work, args=(theirs, job), daemon=True))
            self._processes[-1].start()
            ours.recv()
            self._pipes.append(ours)

    def run(self, kind: str, units: tuple[Unit, ...]) -> float:
        """Return the time that both processes worked, seconds."""
        from benchmarks.token_inputs import forget_outputs  # noqa: PLC0415

        forget_outputs(self._job)
        for pipe, share in zip(self._pipes, (units[::2], units[1::2]), strict=True):
            pipe.send((kind, share))
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join()


def stage(job: StageJob, rounds: int) -> None:
    """Print images a second of loops and workers, one and two of them, and the ratios."""
    from dualtoken.pipelines.inference.networks import open_tokenizer  # noqa: PLC0415
    from dualtoken.pipelines.tokens.pretokenize import Worker  # noqa: PLC0415

    large = tuple(unit for unit in job.units if unit.rows > 1)
    small = tuple(unit for unit in job.units if unit.rows == 1)
    tokenizer, worker, pair = open_tokenizer(job), Worker(job), _Pair(job)
    work: dict[str, Callable[[], float | None]] = {
        "plain loop": lambda: plain_loop(job, tokenizer, large),
        "one worker": lambda: do_units(job, worker, large),
        "two loops": lambda: pair.run("loop", large),
        "two workers": lambda: pair.run("stage", large),
        "loop, shards of 1": lambda: plain_loop(job, tokenizer, small),
        "worker, shards of 1": lambda: do_units(job, worker, small),
    }
    times: dict[str, list[Taken]] = {name: [] for name in work}
    for number in range(rounds + 1):  # the first round warms up
        for name, run in work.items():
            if (found := taken(run)) and number:
                times[name].append(found)
    pair.close()
    print(
        f"{len(large)} shards of {large[0].rows}, {job.recipe.tokenizer.image_size} px, {rounds} rounds; images a second, median"
    )
    for name in ("plain loop", "one worker", "two loops", "two workers"):
        print(
            f"  {name:12}{sum(unit.rows for unit in large) / statistics.median(one.wall for one in times[name]):8.0f}"
        )
    loop, one, loops, two = (times[name] for name in list(work)[:4])
    _ratio("one worker over the loop", [a.wall / b.wall for a, b in zip(loop, one, strict=True)], 0.90)
    _ratio("the same by CPU time", [a.cpu / b.cpu for a, b in zip(loop, one, strict=True)], 0.90)
    _ratio(
        "two workers over twice the loop", [a.wall / b.wall / 2 for a, b in zip(loop, two, strict=True)], 0.85
    )
    _ratio(
        "two workers over two loops at once", [a.wall / b.wall for a, b in zip(loops, two, strict=True)], 0.85
    )
    _ratio("the same by CPU time", [a.cpu / b.cpu for a, b in zip(loops, two, strict=True)], 0.85)
    alone, fixed = times["loop, shards of 1"], times["worker, shards of 1"]
    costs = [1e3 * (b.wall - a.wall) / len(small) for a, b in zip(alone, fixed, strict=True)]
    print(
        f"  fixed cost per shard {statistics.median(costs):.0f} ms ({min(costs):.0f} to {max(costs):.0f}; bar: under 150)"
    )


def _ratio(name: str, values: list[float], bar: float) -> None:
    print(
        f"  {name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}; bar: {bar:.2f})"
    )


def _write(pipe: Connection, folder: str, rounds: int) -> None:
    """Measure the writer in this process, which has never held a model."""
    config = load_recipe("paper-384").tokenizer
    schema = token_schema(config, TokenizerIdentity("0" * 12, "0" * 64), "none")
    width = config.grid_size**2 * config.pixel.depth
    codes = (
        np.random.default_rng(0)
        .integers(0, config.pixel.num_codes, (2, WRITER_BATCH, width))
        .astype(np.uint16)
    )
    keys = [
        [row.to_bytes(16, "big") for row in range(first, first + WRITER_BATCH)]
        for first in range(0, WRITER_ROWS, WRITER_BATCH)
    ]
    store, scratch = Store(f"{folder}/store"), Path(folder) / "scratch"
    before = _resident()
    rates: dict[str, list[float]] = {"to scratch": [], "the same by CPU time": [], "committed": []}
    for number in range(rounds + 1):
        path = scratch / f"{number}.arrow"
        started, busy = time.perf_counter(), time.process_time()
        with TokenShardWriter(path, schema) as writer:
            for batch in keys:
                writer.append(batch, codes[0], codes[1])
        written, worked = time.perf_counter() - started, time.process_time() - busy
        upload(store, scratch, path.name, writer.digest)
        for name, seconds in zip(rates, (written, worked, time.perf_counter() - started), strict=True):
            if number:  # the first round warms up
                rates[name].append(writer.digest.bytes / MEGABYTE / seconds)
        store.remove(path.name)
    pipe.send((rates, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))


@contextmanager
def _child(target: Callable[..., None], *arguments: Any) -> Any:  # noqa: ANN401
    ours, theirs = mp.get_context("spawn").Pipe()
    process = mp.get_context("spawn").Process(target=target, args=(theirs, *arguments))
    process.start()
    yield ours
    process.join()


def _resident() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


def writer(folder: Path, rounds: int) -> None:
    """Print megabytes a second of codes written with their checksums, and the memory that it takes."""
    with _child(_write, str(folder), rounds) as pipe:
        rates, before, peak = pipe.recv()
    print(
        f"writer, {WRITER_ROWS} rows of 729 x 8 x 2 codes in batches of {WRITER_BATCH}, SHA-256 and xxh3 included, MB/s"
    )
    for name, values in rates.items():
        print(
            f"  {name:22}{statistics.median(values):6.0f} ({min(values):.0f} to {max(values):.0f}; bar: 500)"
        )
    print(
        f"  peak memory {peak:.0f} MB of the whole process, {peak - before:.0f} MB over what it held before (bar: under 300)"
    )


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
        if arguments.only == "writer":
            return
        import torch  # noqa: PLC0415  (the writer's process must not have it)

        from benchmarks.models import hardware  # noqa: PLC0415
        from benchmarks.token_inputs import make_job  # noqa: PLC0415

        torch.set_num_threads(1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {hardware(device)}")
        shards = (arguments.rows,) * arguments.shards + (1,) * TINY_SHARDS
        recipe = load_recipe(arguments.recipe, [f"cluster.gpus_per_worker={int(device.type == 'cuda')}"])
        stage(
            make_job(recipe, Path(folder) / "run", shards, arguments.side, arguments.format), arguments.rounds
        )


if __name__ == "__main__":
    main()

"""One reader of `benchmarks/training_reader.py`, in a process of its own: ours, the former, or WebDataset.

Run by that command as: python -m benchmarks.training_reader_readers READER THREADS ROOT BATCHES, where ROOT
holds a corpus that was written. Prints a line of JSON: seconds from nothing to the first batch, memory, and
the rate of the batches after it. All decode by the same library and give batches of uint8 tensors.
"""

import json
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.training_reader_data import CORPUS
from dualtoken.model.vision.transform import to_tensor
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.core.threads import map_ahead
from dualtoken.pipelines.training.dataset import Sample, TrainingSet

BATCH = 64
"""Samples of a batch."""
BATCHES_AHEAD = 2
"""Batches that are read while one is used, as the training loop does."""
FORMER = "d5d23ee:pipelines/training/dataset.py"
"""The reader that opened every shard at start, in the history of this project."""
Batches = Iterator[Any]


def main() -> None:
    """Read some batches and print what it took."""
    reader, threads, root, num_batches = sys.argv[1:]
    torch.set_num_threads(1)
    torch.empty(1)
    job = job_of(Path(root))
    batches_of = READERS[reader]
    before = memory()
    cpu = _cpu_seconds()
    started = time.perf_counter()
    batches = batches_of(job, int(threads))
    side = next(batches).shape[-1]
    first_seconds = time.perf_counter() - started
    first_cpu_seconds = _cpu_seconds() - cpu
    after = memory()
    cpu = _cpu_seconds()
    started = time.perf_counter()
    num_samples = 0
    for batch in islice(batches, int(num_batches)):
        num_samples += len(batch)
    wall = time.perf_counter() - started
    answer = {
        "first_seconds": first_seconds,
        "first_cpu_seconds": first_cpu_seconds,
        "resident_mb": after["VmRSS"] / 1e3,
        "added_mb": (after["VmRSS"] - before["VmRSS"]) / 1e3,
        "peak_mb": memory()["VmHWM"] / 1e3,
        "side": side,
        "wall_rate": num_samples / wall if num_samples else 0,
    }
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]  # all are generators
    # The processor seconds of WebDataset's workers count once these have ended.
    answer["cpu_rate"] = num_samples / max(_cpu_seconds() - cpu, 1e-9)
    print(json.dumps(answer), flush=True)


def job_of(root: Path) -> StageJob:
    """Return the job of a training on a written corpus."""
    recipe = load_recipe("scenes", [f"root={root}"])
    inputs = {f"download/{CORPUS}": str(root / "shards")}
    return StageJob("teacher", None, recipe, str(root / "run"), "one", inputs, (Unit("model", 0),))


def memory() -> dict[str, int]:
    """Return this process's resident memory and its peak, kB."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0])
    return found


def _cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def ours(job: StageJob, threads: int) -> Batches:
    """Read as the trainings do."""
    with closing(
        TrainingSet(job, Path(job.folder) / "scratch", seed=0, num_threads=threads, samples="download")
    ) as samples:

        def load(step: int) -> Any:  # noqa: ANN401
            levels: list[Any] = [None] * BATCH
            captions = [""] * BATCH

            def take(place: int, sample: Sample) -> None:
                levels[place] = _view(sample.picture)
                captions[place] = sample.shard.caption(sample.row)

            samples.read(step * BATCH, range(BATCH), take)
            return torch.cat(levels)

        yield from map_ahead(load, range(10**9), threads=1, ahead=BATCHES_AHEAD)


def _view(picture: Image.Image) -> Any:  # noqa: ANN401
    return to_tensor([picture], picture.width)


def former(job: StageJob, _: int) -> Batches:
    """Read as the trainings did before: every shard open, one thread."""
    source = subprocess.run(  # noqa: S603
        ["git", "show", FORMER],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    module: Any = types.ModuleType("former")
    sys.modules["former"] = module
    exec(compile(source, FORMER, "exec"), module.__dict__)  # noqa: S102  (our own history)
    samples = module.TrainingSet(job, Path(job.folder) / "scratch", with_targets=False)

    def load(step: int) -> Any:  # noqa: ANN401
        numbers = module.batch_numbers(len(samples), BATCH, 0, step)
        decoded = samples.decode(numbers, lambda _, picture: _view(picture))
        for number in decoded.numbers:
            samples.caption(number)
        return decoded.levels

    yield from map_ahead(load, range(10**9), threads=1, ahead=BATCHES_AHEAD)


def webdataset(job: StageJob, threads: int) -> Batches:
    """Shards and a buffer of 1,000 are shuffled, as documented; more threads are worker processes here."""
    import webdataset as wds  # noqa: PLC0415

    (folder,) = job.inputs.values()
    tars = sorted(map(str, Path(folder).glob("*.tar")))
    workers = threads if threads > 1 else 0
    dataset: Any = (
        wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(_first_view, str)
        .batched(BATCH, collation_fn=_collate)
        .repeat()
    )
    if not workers:
        yield from (levels for levels, _ in map_ahead(lambda batch: batch, dataset, 1, BATCHES_AHEAD))
        return
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=BATCHES_AHEAD)
    for levels, _ in loader:
        yield levels


def _first_view(picture: Image.Image) -> Any:  # noqa: ANN401
    return _view(picture)


def _collate(samples: list[tuple[Any, str]]) -> tuple[Any, list[str]]:
    return torch.cat([levels for levels, _ in samples]), [caption for _, caption in samples]


READERS: dict[str, Callable[[StageJob, int], Batches]] = {
    "ours": ours,
    "former": former,
    "webdataset": webdataset,
}

if __name__ == "__main__":
    main()

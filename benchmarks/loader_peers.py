"""One contestant of `benchmarks/loader.py` in a process of its own: writes its format, then reads epochs as told on standard input.

Run by that command as: PYTHON loader_peers.py NAME FOLDER. Needs numpy and the peer, nothing of ours. FOLDER holds codes.npy, (rows,
2, 729, 8) of uint16. Answers a JSON line for each line read: `sequential` or `shuffled`. A batch is memory of its own, as training
needs it (what is only a view of a file is copied). Each peer has one record per sample, raw where its format has a raw type.
"""

import importlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

BATCH, SHARD = 64, 4096
SHAPE = (2, 729, 8)
Batches = Iterator[Any]
"""(B, 2, 729, 8) of uint16."""
Epoch = Callable[[bool], Batches]
"""Gives an epoch, shuffled or not."""


def main(make: Callable[[str, Path], Epoch]) -> None:
    """Serve epochs until standard input ends."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    epoch = make(name, folder)
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        samples, total, cpu, wall = 0, 0, _cpu(), time.perf_counter()
        for batch in epoch(line.strip() == "shuffled"):
            samples += len(batch)
            total += sum(
                int(np.asarray(corner).sum(dtype=np.int64))
                for corner in (batch[:, 0, 0, 0], batch[:, 1, -1, -1])
            )
        print(
            json.dumps(
                {"samples": samples, "total": total, "cpu": _cpu() - cpu, "wall": time.perf_counter() - wall}
            ),
            flush=True,
        )


def _cpu() -> float:
    """Return the processor seconds of this process, all its threads, and of its children that ended."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def codes(folder: Path) -> Any:  # noqa: ANN401
    """Return the data, mapped."""
    return np.load(folder / "codes.npy", mmap_mode="r")


def stacked(samples: Iterator[Any]) -> Batches:
    """Stack raw samples into batches."""
    held = []
    for sample in samples:
        held.append(np.frombuffer(sample, np.uint16))
        if len(held) == BATCH:
            yield np.stack(held).reshape(-1, *SHAPE)
            held = []
    if held:
        yield np.stack(held).reshape(-1, *SHAPE)


def webdataset(folder: Path) -> Epoch:
    """Tars of one raw member per sample; shards and a buffer of 1,000 are shuffled, as its documentation does."""
    import webdataset as wds  # noqa: PLC0415

    def write(out: Path) -> None:
        out.mkdir()
        with wds.ShardWriter(f"{out}/%05d.tar", maxcount=SHARD, verbose=0) as sink:
            for row, sample in enumerate(codes(folder)):
                sink.write({"__key__": f"{row:08d}", "codes": sample.tobytes()})

    out = written(folder / "webdataset", write)
    shards = sorted(map(str, out.glob("*.tar")))

    def epoch(shuffled: bool) -> Batches:
        dataset: Any = wds.WebDataset(
            shards, shardshuffle=len(shards) if shuffled else False, empty_check=False
        )
        return stacked(sample["codes"] for sample in (dataset.shuffle(1000) if shuffled else dataset))

    return epoch


def litdata(folder: Path) -> Epoch:
    """Chunks of 64 MB, its default, of one-dimensional arrays, which it stores without a header."""
    peer = importlib.import_module("litdata")

    def write(out: Path) -> None:
        rows = list(range(len(codes(folder))))
        peer.optimize(partial(_flat, folder), rows, output_dir=str(out), chunk_bytes="64MB", num_workers=1)

    out = written(folder / "litdata", write)

    def epoch(shuffled: bool) -> Batches:
        return stacked(iter(peer.StreamingDataset(str(out), shuffle=shuffled, drop_last=False)))

    return epoch


def streaming(folder: Path) -> Epoch:
    """MDS shards of 64 MB, its default, of a raw column; shuffled by its default, py1e."""
    _define_missing_operators()
    mosaic = importlib.import_module("streaming")

    def write(out: Path) -> None:
        with mosaic.MDSWriter(out=str(out), columns={"codes": "bytes"}) as sink:
            for sample in codes(folder):
                sink.write({"codes": sample.tobytes()})

    out = written(folder / "streaming", write)
    importlib.import_module("streaming.base.util").clean_stale_shared_memory()
    datasets = {
        shuffled: mosaic.StreamingDataset(local=str(out), shuffle=shuffled, batch_size=BATCH)
        for shuffled in (False, True)
    }
    return lambda shuffled: stacked(sample["codes"] for sample in datasets[shuffled])


def datasets(folder: Path, kind: str = "torch", take: Callable[[Any], Any] = itemgetter("codes")) -> Epoch:
    """Arrow files of fixed-size lists, read by batches as tensors, as its pages on PyTorch say; shuffled by an index mapping."""
    peer = importlib.import_module("datasets")

    def write(out: Path) -> None:
        features = peer.Features({"codes": peer.List(peer.Value("uint16"), length=int(np.prod(SHAPE)))})
        rows = peer.Dataset.from_generator(
            partial(_rows, folder), features=features, cache_dir=str(folder / "cache")
        )
        rows.save_to_disk(str(out), max_shard_size="100MB")

    out = written(folder / "datasets", write)
    whole: Any = peer.load_from_disk(str(out)).with_format(kind)
    orders = {False: whole, True: whole.shuffle(seed=0)}
    return lambda shuffled: (take(batch).reshape(-1, *SHAPE) for batch in orders[shuffled].iter(BATCH))


def datasets_arrow(folder: Path) -> Epoch:
    """The same files, read as Arrow tables that are made into arrays by hand: more than its documentation does for training."""
    epoch = datasets(folder, "arrow", lambda table: table["codes"].combine_chunks().flatten().to_numpy())

    def own(shuffled: bool) -> Batches:
        return (found if found.flags.writeable else found.copy() for found in epoch(shuffled))

    return own


def written(out: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder unless it is there whole."""
    part = out.with_name(f"{out.name}.part")
    if not out.exists():
        shutil.rmtree(part, ignore_errors=True)
        write(part)
        part.rename(out)
    return out


def _flat(folder: Path, row: int) -> Any:  # noqa: ANN401
    return codes(folder)[row].reshape(-1).copy()


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for sample in codes(folder):
        yield {"codes": sample.reshape(-1)}


def _define_missing_operators() -> None:
    """Let torchvision be imported beside a torch of another build; nothing to do where it can be."""
    import torch  # noqa: PLC0415

    try:
        import torchvision  # noqa: F401, PLC0415
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _held.append(library)


_held: list[Any] = []
DOCUMENTED = {"webdataset": webdataset, "litdata": litdata, "streaming": streaming, "datasets": datasets}
PEERS = {**DOCUMENTED, "datasets_arrow": datasets_arrow}

if __name__ == "__main__":
    main(lambda name, folder: PEERS[name](folder))

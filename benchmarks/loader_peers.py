"""One contestant of `benchmarks/loader.py`: writes its format, then reads epochs as standard input asks.

Run by that command as: PYTHON loader_peers.py NAME FOLDER. Needs numpy and the peer, nothing of ours. FOLDER
holds codes.npy, (rows, 2, 729, 8) of uint16. Each line read, one of `MODES`, is answered by a line of JSON.
A batch may be written to and the file stays as it is, as training needs it (what is only a view of a file is
copied).
Each peer has one record per sample, raw where its format has a raw type.
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

IN_ORDER = "in order"
IN_ORDER_USED = "in order, all codes made int32"
SHUFFLED = "shuffled"
MODES = (IN_ORDER, IN_ORDER_USED, SHUFFLED)
BATCH = 64
"""Samples of a batch."""
SHARD = 4096
"""Samples of a shard."""
SHAPE = (2, 729, 8)
"""Streams, image tokens and depth of a sample."""
Batches = Iterator[Any]
"""Arrays of uint16, (B, 2, 729, 8)."""
Epoch = Callable[[bool], Batches]
"""Returns the batches of an epoch, shuffled if its argument is true."""


def main(make: Callable[[str, Path], Epoch]) -> None:
    """Serve epochs until standard input ends; `make` returns the epochs of a contestant for a folder."""
    name = sys.argv[1]
    folder = Path(sys.argv[2])
    epoch = make(name, folder)
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        mode = line.strip()
        read = _read(epoch(mode == SHUFFLED), use_all=mode == IN_ORDER_USED)
        print(json.dumps(read), flush=True)


def _read(batches: Batches, *, use_all: bool) -> dict[str, float]:
    """Read an epoch; return its samples, a check sum of two corners of each, and the seconds it took.

    With `use_all`, all codes are made into int32, as a model does that looks them up.
    """
    samples = 0
    total = 0
    cpu = _cpu_seconds()
    system = _system_seconds()
    wall = time.perf_counter()
    for batch in batches:
        samples += len(batch)
        total += _sum(batch[:, 0, 0, 0]) + _sum(batch[:, 1, -1, -1])
        if use_all:
            for stream in range(2):
                np.asarray(batch[:, stream]).astype(np.int32)
    return {
        "samples": samples,
        "total": total,
        "cpu": _cpu_seconds() - cpu,
        "system": _system_seconds() - system,
        "wall": time.perf_counter() - wall,
    }


def _sum(ids: Any) -> int:  # noqa: ANN401
    return int(np.asarray(ids).sum(dtype=np.int64))


def _cpu_seconds() -> float:
    """Return the processor seconds of this process, all its threads, and of its children that ended."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def _system_seconds() -> float:
    """Return the part of `_cpu_seconds` that the kernel took."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        total += resource.getrusage(who).ru_stime
    return total


def codes(folder: Path) -> Any:  # noqa: ANN401
    """Return the data, mapped."""
    return np.load(folder / "codes.npy", mmap_mode="r")


def stacked(samples: Iterator[Any]) -> Batches:
    """Stack raw samples into batches."""
    batch = []
    for sample in samples:
        batch.append(np.frombuffer(sample, np.uint16))
        if len(batch) == BATCH:
            yield np.stack(batch).reshape(-1, *SHAPE)
            batch = []
    if batch:
        yield np.stack(batch).reshape(-1, *SHAPE)


def webdataset(folder: Path) -> Epoch:
    """Tars of one raw member per sample; shards and a buffer of 1,000 are shuffled, as documented."""
    import webdataset as wds  # noqa: PLC0415

    def write(out: Path) -> None:
        out.mkdir()
        with wds.ShardWriter(f"{out}/%05d.tar", maxcount=SHARD, verbose=0) as sink:
            for row, sample in enumerate(codes(folder)):
                sink.write({"__key__": f"{row:08d}", "codes": sample.tobytes()})

    out = written(folder / "webdataset", write)
    shards = sorted(map(str, out.glob("*.tar")))

    def epoch(shuffled: bool) -> Batches:
        dataset: Any
        if shuffled:
            dataset = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(1000)
        else:
            dataset = wds.WebDataset(shards, shardshuffle=False, empty_check=False)
        return stacked(sample["codes"] for sample in dataset)

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
    in_order = mosaic.StreamingDataset(local=str(out), shuffle=False, batch_size=BATCH)
    in_random_order = mosaic.StreamingDataset(local=str(out), shuffle=True, batch_size=BATCH)

    def epoch(shuffled: bool) -> Batches:
        dataset = in_random_order if shuffled else in_order
        return stacked(sample["codes"] for sample in dataset)

    return epoch


def datasets(folder: Path, kind: str = "torch", take: Callable[[Any], Any] = itemgetter("codes")) -> Epoch:
    """Arrow files of fixed-size lists, read by batches as tensors, as its pages on PyTorch say.

    Shuffled by an index mapping.
    """
    peer = importlib.import_module("datasets")

    def write(out: Path) -> None:
        features = peer.Features({"codes": peer.List(peer.Value("uint16"), length=int(np.prod(SHAPE)))})
        rows = peer.Dataset.from_generator(
            partial(_rows, folder), features=features, cache_dir=str(folder / "cache")
        )
        rows.save_to_disk(str(out), max_shard_size="100MB")

    out = written(folder / "datasets", write)
    in_order: Any = peer.load_from_disk(str(out)).with_format(kind)
    in_random_order = in_order.shuffle(seed=0)

    def epoch(shuffled: bool) -> Batches:
        dataset = in_random_order if shuffled else in_order
        for batch in dataset.iter(BATCH):
            yield take(batch).reshape(-1, *SHAPE)

    return epoch


def datasets_arrow(folder: Path) -> Epoch:
    """The same files, read as Arrow tables that are made into arrays by hand.

    That is more than its documentation does for training.
    """
    epoch = datasets(folder, "arrow", lambda table: table["codes"].combine_chunks().flatten().to_numpy())

    def epoch_of_own_memory(shuffled: bool) -> Batches:
        for batch in epoch(shuffled):
            yield batch if batch.flags.writeable else batch.copy()

    return epoch_of_own_memory


def written(out: Path, write: Callable[[Path], None]) -> Path:
    """Write a folder unless it is there, and return it.

    It is written under another name, so that only a whole one has its own.
    """
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
        for name in list(sys.modules):
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


_libraries: list[Any] = []
"""Definitions of operators, which end with their object."""
DOCUMENTED = {"webdataset": webdataset, "litdata": litdata, "streaming": streaming, "datasets": datasets}
"""Peers read as their documentation says."""
PEERS = {**DOCUMENTED, "datasets_arrow": datasets_arrow}

if __name__ == "__main__":
    main(lambda name, folder: PEERS[name](folder))

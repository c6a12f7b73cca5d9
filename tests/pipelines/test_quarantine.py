"""Damaged shards under quarantine: fetched again, then named in a ledger and counted; all other samples come, once and exactly."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.storage import Store
from pipelines.checked_files import DamagedShardError
from pipelines.documents import Markers, PackPlan
from pipelines.load_plan import LoadPlan
from pipelines.loader import TokenBatch, TokenLoader, iterate
from pipelines.packed_loader import PackedBatch, PackedLoader
from pipelines.quarantine import read_quarantine
from pipelines.shard_cache import ShardCache
from pipelines.token_reader import TokenDataset
from tests.s3_servers import s3_server
from tests.token_datasets import key_of, write_tokens

ROWS, PER_SHARD = 450, 100
LOST = range(100, 200)
"""Rows of the damaged shard."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "a", ROWS, rows_per_shard=PER_SHARD)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


@pytest.fixture(
    params=[("data/00001.arrow", flip), ("data/00001.arrow", cut), ("data/00001.arrow", Path.unlink), ("meta/00001.parquet", flip)]
)
def damaged(request: pytest.FixtureRequest, tokens: str, tmp_path: Path) -> tuple[TokenDataset, str, Path]:
    name, damage = request.param
    shutil.copytree(tokens, tmp_path / "damaged")
    damage(tmp_path / "damaged" / name)
    return TokenDataset(str(tmp_path / "damaged")), name, tmp_path / "ledger.jsonl"


Batches = list[Any]
LOADERS: dict[str, Callable[..., Any]] = {
    "samples": lambda load, **ranks: TokenLoader(load, 7, **ranks),
    "sequences": lambda load, **ranks: PackedLoader(
        PackPlan(load=load, capacity=40, tokenize=lambda text: [len(text)], markers=Markers(image_start=1, image_end=2), pool_size=16),
        3,
        **ranks,
    ),
}


def keys(batches: list[TokenBatch] | list[PackedBatch]) -> Counter[bytes]:
    return Counter(key.tobytes() for batch in batches for key in batch.keys.numpy())


@pytest.mark.parametrize("kind", LOADERS)
def test_the_rest_is_exact_and_each_lost_sample_is_counted_and_named(damaged: tuple[TokenDataset, str, Path], kind: str) -> None:
    dataset, name, ledger = damaged
    load = LoadPlan(datasets=(dataset,), epochs=(2,), with_captions=True, on_damage="quarantine", damage_ledger=ledger)
    batches = [batch for rank in range(3) for batch in LOADERS[kind](load, rank=rank, world_size=3)]
    assert keys(batches) == Counter({key_of("a", row): 2 for row in range(ROWS) if row not in LOST})
    assert sum(batch.lost for batch in batches) == 2 * len(LOST)
    (entry,) = read_quarantine(ledger)
    assert (entry["dataset"], entry["shard"], entry["file"], entry["rows"]) == (dataset.url, "00001", name, 100)
    assert entry["reason"]


@pytest.mark.parametrize("kind", LOADERS)
def test_without_quarantine_the_run_ends_with_the_shard_named(damaged: tuple[TokenDataset, str, Path], kind: str) -> None:
    dataset, name, ledger = damaged
    with pytest.raises(DamagedShardError, match=rf"{name} is damaged \(.*\): run `dualtoken verify"):
        list(LOADERS[kind](LoadPlan(datasets=(dataset,), with_captions=True)))
    assert not ledger.exists()


@pytest.mark.parametrize("kind", LOADERS)
def test_a_stopped_run_loses_the_same_samples_under_other_ranks(damaged: tuple[TokenDataset, str, Path], kind: str) -> None:
    dataset, _, ledger = damaged
    load = LoadPlan(datasets=(dataset,), with_captions=True, on_damage="quarantine", damage_ledger=ledger)
    first = LOADERS[kind](load)
    begun: Batches = [batch for _, batch in zip(range(4), first, strict=False)]
    state = json.loads(json.dumps(first.state_dict(begun[-1])))
    for rank in range(2):
        second = LOADERS[kind](load, rank=rank, world_size=2)
        second.load_state_dict(state)
        begun += second
    assert keys(begun) == Counter(key_of("a", row) for row in range(ROWS) if row not in LOST)
    assert sum(batch.lost for batch in begun) == len(LOST)


def test_worker_processes_write_one_line_together(damaged: tuple[TokenDataset, str, Path]) -> None:
    dataset, _, ledger = damaged
    load = LoadPlan(datasets=(dataset,), with_captions=True, on_damage="quarantine", damage_ledger=ledger)
    batches = list(iterate(TokenLoader(load, 7), num_workers=2))
    assert sum(batch.lost for batch in batches) == len(LOST)
    assert len(read_quarantine(ledger)) == 1


def test_a_remote_shard_is_fetched_again_before_it_is_given_up(tokens: str, tmp_path: Path) -> None:
    with s3_server("rclone", tmp_path / "server") as bucket:
        remote = Store(f"{bucket}/a")
        for name, _ in Store(tokens).files():
            remote.put(Path(tokens) / name, name)
        cache, ledger = ShardCache(tmp_path / "cache", max_bytes=10**6), tmp_path / "ledger.jsonl"

        def run() -> list[TokenBatch]:
            dataset = TokenDataset(remote.url, cache=cache)
            load = LoadPlan(datasets=(dataset,), with_captions=True, on_damage="quarantine", damage_ledger=ledger)
            return list(TokenLoader(load, 64))

        whole = run()
        for copy in (tmp_path / "cache").glob("*.shard"):
            flip(copy)
        assert keys(run()) == keys(whole) == Counter(key_of("a", row) for row in range(ROWS))
        assert not read_quarantine(ledger), "copies that could be fetched again are no loss"
        for damaged in (*(tmp_path / "cache").glob("*.shard"), tmp_path / "server/test/a/data/00001.arrow"):
            flip(damaged)
        assert keys(run()) == Counter(key_of("a", row) for row in range(ROWS) if row not in LOST)
        assert [entry["file"] for entry in read_quarantine(ledger)] == ["data/00001.arrow"]


def test_quarantine_without_a_ledger_is_refused(tokens: str) -> None:
    with pytest.raises(ValueError, match="on_damage=quarantine without damage_ledger: name a file"):
        LoadPlan(datasets=(TokenDataset(tokens),), on_damage="quarantine")

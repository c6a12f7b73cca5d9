"""Damaged shards under quarantine: fetched again, then named in a ledger and counted.

All other samples come, once and exactly.
"""

import itertools
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.batches import PackedBatch, TokenBatch
from dualtoken.pipelines.loader.document_kinds import DocumentKind
from dualtoken.pipelines.loader.documents import Markers, PackPlan
from dualtoken.pipelines.loader.packed_loader import PackedLoader
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.quarantine import read_quarantine
from dualtoken.pipelines.loader.token_loader import TokenLoader, iterate
from dualtoken.pipelines.tokens import caption_cache, open_shards
from dualtoken.pipelines.tokens.checked_files import DamagedShardError
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache
from tests.helpers.damage import cut_short, flip_byte
from tests.helpers.loader_workers import keys_in, keys_of_rows, lost_in
from tests.helpers.s3_servers import s3_server
from tests.helpers.token_datasets import write_tokens

ROWS = 450
PER_SHARD = 100
LOST = range(100, 200)
"""Rows of the damaged shard."""
REST = [*range(100), *range(200, ROWS)]
"""Rows of the other shards."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokens") / "a"
    return write_tokens(folder, ROWS, rows_per_shard=PER_SHARD, columns={"questions": questions(ROWS)})


def questions(rows: int) -> list[str | None]:
    """Return turns of rows, none for every third."""
    turns: list[str | None] = []
    for row in range(rows):
        turns.append(json.dumps([{"question": "q" * (row % 7), "answer": "a"}]) if row % 3 else None)
    return turns


@pytest.fixture(
    params=[
        ("data/00001.arrow", flip_byte),
        ("data/00001.arrow", cut_short),
        ("data/00001.arrow", Path.unlink),
        ("meta/00001.parquet", flip_byte),
    ]
)
def damaged(request: pytest.FixtureRequest, tokens: str, tmp_path: Path) -> tuple[TokenDataset, str, Path]:
    name, damage = request.param
    shutil.copytree(tokens, tmp_path / "damaged")
    damage(tmp_path / "damaged" / name)
    return TokenDataset(str(tmp_path / "damaged")), name, tmp_path / "ledger.jsonl"


Batches = list[Any]


def _samples(load: LoadPlan, *, pool_size: int = 16, **ranks: int) -> TokenLoader:
    del pool_size
    return TokenLoader(load, 7, **ranks)


def _sequences(load: LoadPlan, *, pool_size: int = 16, **ranks: int) -> PackedLoader:
    markers = Markers(image_start=1, image_end=2)
    plan = PackPlan(
        load=load, capacity=40, tokenize=lambda text: [len(text)], markers=markers, pool_size=pool_size
    )
    return PackedLoader(plan, 3, **ranks)


def _kinds(load: LoadPlan, **options: int) -> PackedLoader:
    """Return a loader of sequences with documents of all kinds."""
    plan = _sequences(load, **options).packing
    ranks = {name: options[name] for name in ("rank", "world_size") if name in options}
    of_kinds = replace(
        plan,
        markers=Markers(image_start=1, image_end=2, start=3, end=4, user=(5,), assistant=(6,), turn_end=(7,)),
        documents=dict.fromkeys(DocumentKind, 1.0),
        questions_column="questions",
    )
    return PackedLoader(of_kinds, 3, **ranks)


LOADERS: dict[str, Callable[..., Any]] = {"samples": _samples, "sequences": _sequences, "kinds": _kinds}


def quarantined(dataset: TokenDataset, ledger: Path, **how: Any) -> LoadPlan:
    return LoadPlan(
        datasets=(dataset,), with_captions=True, on_damage="quarantine", damage_ledger=ledger, **how
    )


def end_where_captions_are_damaged(kind: str, name: str, load: LoadPlan) -> None:
    """Expect a run to end where captions are damaged, since they decide which sequences there are.

    The ledger then names them for the next run.
    """
    if kind != "samples" and name.startswith("meta"):
        with pytest.raises(DamagedShardError, match=name) as ended:
            list(LOADERS[kind](load))
        assert f"{load.damage_ledger} names it now" in ended.value.__notes__[0]


def loaded_by(kind: str, load: LoadPlan, world_size: int, **how: int) -> list[Batches]:
    """Return the batches of each rank."""
    ranks: list[Batches] = []
    for rank in range(world_size):
        loader = LOADERS[kind](load, rank=rank, world_size=world_size, **how)
        ranks.append(list(loader))
    return ranks


def chained(ranks: Sequence[Batches]) -> Batches:
    return list(itertools.chain.from_iterable(ranks))


def sequences_of(batches: Sequence[PackedBatch]) -> list[tuple[int, bytes]]:
    """Return what tells sequences apart: where each step ends, and which documents wait then."""
    return [(batch.position, batch.waiting) for batch in batches]


def keys_left(times: int = 1) -> Counter[bytes]:
    """Count the keys of all rows but those of the damaged shard."""
    return keys_of_rows({"a": REST}, times)


@pytest.mark.parametrize("kind", LOADERS)
def test_the_rest_is_exact_and_each_lost_sample_is_counted_and_named(
    damaged: tuple[TokenDataset, str, Path], kind: str
) -> None:
    dataset, name, ledger = damaged
    load = quarantined(dataset, ledger, epochs=(2,))
    end_where_captions_are_damaged(kind, name, load)
    batches = chained(loaded_by(kind, load, world_size=3))
    assert keys_in(batches) == keys_left(times=2)
    assert lost_in(batches) == 2 * len(LOST)
    (entry,) = read_quarantine(ledger)
    assert entry["dataset"] == dataset.url
    assert entry["shard"] == "00001"
    assert entry["file"] == name
    assert entry["rows"] == 100
    assert entry["reason"]


@pytest.mark.parametrize("kind", LOADERS)
def test_without_quarantine_the_run_ends_with_the_shard_named(
    damaged: tuple[TokenDataset, str, Path], kind: str
) -> None:
    dataset, name, ledger = damaged
    with pytest.raises(DamagedShardError, match=rf"{name} is damaged \(.*\): run `dualtoken verify"):
        list(LOADERS[kind](LoadPlan(datasets=(dataset,), with_captions=True)))
    assert not ledger.exists()


def test_a_worker_process_ends_the_run_with_the_same_error(tokens: str, tmp_path: Path) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    flip_byte(tmp_path / "copy/data/00001.arrow")
    with pytest.raises(
        DamagedShardError, match=r"data/00001\.arrow is damaged \(.*\): run `dualtoken verify"
    ):
        list(iterate(_samples(LoadPlan(datasets=(TokenDataset(str(tmp_path / "copy")),))), num_workers=1))


def test_the_error_goes_to_other_processes_whole() -> None:
    error = DamagedShardError.of("s3://a/tokens", "data/00001.arrow", "missing")
    error.shard = ("s3://a/tokens", 1)
    sent = pickle.loads(pickle.dumps(error))
    assert (str(sent), vars(sent)) == (str(error), vars(error))


@pytest.mark.parametrize("kind", LOADERS)
def test_a_stopped_run_loses_the_same_samples_under_other_ranks(
    damaged: tuple[TokenDataset, str, Path], kind: str
) -> None:
    dataset, name, ledger = damaged
    load = quarantined(dataset, ledger)
    end_where_captions_are_damaged(kind, name, load)
    first = LOADERS[kind](load)
    begun: Batches = list(itertools.islice(first, 4))
    state = json.loads(json.dumps(first.state_dict(begun[-1])))
    for rank in range(2):
        second = LOADERS[kind](load, rank=rank, world_size=2)
        second.load_state_dict(state)
        begun += second
    assert keys_in(begun) == keys_left()
    assert lost_in(begun) == len(LOST)


def test_worker_processes_write_one_line_together(damaged: tuple[TokenDataset, str, Path]) -> None:
    dataset, _, ledger = damaged
    load = quarantined(dataset, ledger)
    batches = list(iterate(TokenLoader(load, 7), num_workers=2))
    assert lost_in(batches) == len(LOST)
    assert len(read_quarantine(ledger)) == 1


def test_a_remote_shard_is_fetched_again_before_it_is_given_up(tokens: str, tmp_path: Path) -> None:
    with s3_server("rclone", tmp_path / "server") as bucket:
        remote = Store(f"{bucket}/a")
        for name, _ in Store(tokens).files():
            remote.put(Path(tokens) / name, name)
        cache = ShardCache(tmp_path / "cache", max_bytes=10**6)
        ledger = tmp_path / "ledger.jsonl"

        def run() -> list[TokenBatch]:
            return list(TokenLoader(quarantined(TokenDataset(remote.url, cache=cache), ledger), 64))

        whole = run()
        for copy in (tmp_path / "cache").glob("*.shard"):
            flip_byte(copy)
        assert keys_in(run()) == keys_in(whole) == keys_of_rows({"a": range(ROWS)})
        assert not read_quarantine(ledger), "copies that could be fetched again are no loss"
        for damaged in (*(tmp_path / "cache").glob("*.shard"), tmp_path / "server/test/a/data/00001.arrow"):
            flip_byte(damaged)
        assert keys_in(run()) == keys_left()
        (entry,) = read_quarantine(ledger)
        assert entry["file"] == "data/00001.arrow"


@pytest.mark.parametrize("name", ["data/00001.arrow", "meta/00001.parquet"])
def test_a_shard_that_goes_bad_after_it_was_found_whole_is_lost_from_then_on(
    name: str, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_shards, "MAX_OPEN_SHARDS", 1)
    monkeypatch.setattr(caption_cache, "CAPTION_BYTES", 1)
    shutil.copytree(tokens, tmp_path / "copy")
    load = quarantined(
        TokenDataset(str(tmp_path / "copy")), tmp_path / "ledger.jsonl", epochs=(2,), shuffle=False
    )
    batches: Batches = []
    for batch in TokenLoader(load, 50):
        batches.append(batch)
        if len(batches) == ROWS // 50:
            flip_byte(tmp_path / "copy" / name)
    assert keys_in(batches) == keys_left(times=2) + keys_of_rows({"a": LOST})
    assert lost_in(batches) == len(LOST)


def test_an_error_that_is_no_damage_is_raised_and_the_shard_looked_at_again(
    tokens: str, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    shard = tmp_path / "copy/data/00001.arrow"
    load = quarantined(TokenDataset(str(tmp_path / "copy")), tmp_path / "ledger.jsonl")
    shard.rename(tmp_path / "aside")
    shard.symlink_to(shard)  # whose end is never found
    loader = TokenLoader(load, ROWS)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        next(iter(loader))
    shard.unlink()
    flip_byte(tmp_path / "aside")
    (tmp_path / "aside").rename(shard)
    assert keys_in(list(loader)) == keys_left()


@pytest.mark.parametrize("kind", ["sequences", "kinds"])
def test_what_one_rank_alone_cannot_read_changes_no_sequence_of_any_rank(
    kind: str, tokens: str, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")

    def rank(number: int) -> Batches:
        load = quarantined(TokenDataset(str(tmp_path / "copy")), ledger)
        return list(LOADERS[kind](load, rank=number, world_size=2))

    ledger = tmp_path / "ledger.jsonl"
    whole = [rank(0), rank(1)]
    flip_byte(tmp_path / "copy/data/00001.arrow")
    holed = rank(0)
    assert sequences_of(holed) == sequences_of(whole[1])
    assert keys_in(holed).total() + lost_in(holed) == keys_in(whole[0]).total()
    assert keys_in(holed + whole[1]) < keys_in(whole[0] + whole[1])
    flip_byte(tmp_path / "copy/meta/00002.parquet")
    with pytest.raises(DamagedShardError, match=r"00002\.parquet"):
        rank(0)
    # Whole for the other rank, which goes by the ledger all the same.
    flip_byte(tmp_path / "copy/meta/00002.parquet")
    assert sequences_of(rank(0)) == sequences_of(rank(1))
    assert not keys_in(rank(0) + rank(1)) & keys_of_rows({"a": range(200, 300)})


@pytest.mark.parametrize("kinds", [None, (DocumentKind.DRAW, DocumentKind.DESCRIBE, DocumentKind.TEXT)])
def test_with_lengths_given_damaged_captions_leave_holes_whichever_rank_or_worker_meets_them_first(
    kinds: tuple[DocumentKind, ...] | None, tokens: str, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    ledger = tmp_path / "ledger.jsonl"

    def rank(number: int) -> Batches:
        # Opened anew, as by a process that begins when the other's damage stands in the ledger.
        load = quarantined(TokenDataset(str(tmp_path / "copy")), ledger)
        plan = PackPlan(
            load=load,
            capacity=40,
            tokenize=lambda text: [7] * len(text),
            markers=Markers(image_start=1, image_end=2, start=3, assistant=(4, 5)),
            pool_size=16,
            documents=dict.fromkeys(kinds, 1.0) if kinds else None,
            lengths=lambda _, rows: np.array([len(f"a {row}") for row in rows]),
        )
        return list(iterate(PackedLoader(plan, 3, rank=number, world_size=2), num_workers=2))

    whole = [rank(0), rank(1)]
    flip_byte(tmp_path / "copy/meta/00001.parquet")
    holed = [rank(0), rank(1)]
    (entry,) = read_quarantine(ledger)
    assert (entry["file"], entry["captions"]) == ("meta/00001.parquet", True)
    assert sequences_of(holed[0]) == sequences_of(whole[0])
    assert sequences_of(holed[1]) == sequences_of(whole[1])
    assert keys_in(holed[0] + holed[1]) == keys_left()
    assert lost_in(holed[0] + holed[1]) == len(LOST)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(("rows", "lost"), [(80, 80), (140, 50), (180, 90)])
def test_samples_that_are_lost_at_the_end_or_are_all_there_were_are_counted(
    kind: str, rows: int, lost: int, tmp_path: Path
) -> None:
    # A shard is 15 steps of 2 x 3 sequences.
    url = write_tokens(tmp_path / "a", rows, rows_per_shard=90, columns={"questions": questions(rows)})
    dataset = TokenDataset(url)
    last = f"meta/{(rows - 1) // 90:05d}.parquet"
    flip_byte(tmp_path / "a" / last)
    load = quarantined(dataset, tmp_path / "ledger.jsonl", shuffle=False)
    end_where_captions_are_damaged(kind, last, load)
    ranks = loaded_by(kind, load, world_size=2, pool_size=1)
    assert len(ranks[0]) == len(ranks[1])
    assert lost_in(chained(ranks)) == lost
    assert keys_in(chained(ranks)).total() == rows - lost


def test_a_column_of_turns_is_looked_for_in_the_first_shard_that_is_whole(
    tokens: str, tmp_path: Path
) -> None:
    shutil.copytree(tokens, tmp_path / "copy")
    flip_byte(tmp_path / "copy/meta/00000.parquet")
    dataset = TokenDataset(str(tmp_path / "copy"))
    with pytest.raises(DamagedShardError, match=r"meta/00000\.parquet"):
        _kinds(LoadPlan(datasets=(dataset,)))
    load = quarantined(dataset, tmp_path / "ledger.jsonl")
    plan = _kinds(load).packing
    with pytest.raises(
        UserError, match=r"meta/00001\.parquet has no column 'turns': use one of key, caption"
    ):
        PackedLoader(replace(plan, questions_column="turns"), 3)


def test_quarantine_without_a_ledger_is_refused(tokens: str) -> None:
    with pytest.raises(ValueError, match="on_damage=quarantine without damage_ledger: name a file"):
        LoadPlan(datasets=(TokenDataset(tokens),), on_damage="quarantine")

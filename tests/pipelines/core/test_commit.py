"""Units are committed files first, receipt last; what has a receipt is never done again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.commit import run_unit
from dualtoken.pipelines.core.ledger import OK_VERDICT, ledger_table, sample_key
from dualtoken.pipelines.core.receipts import Receipt, read_receipts
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.core.tombstones import Tombstones, url_hash
from tests.helpers.tiny_run import LoadTiny

UNIT = Unit("00000", 3)


class Letters:
    """Writes one file, and counts how often it is asked to."""

    def __init__(self, text: str = "abc", rows: int = 3) -> None:
        self.text, self.rows, self.calls = text, rows, 0

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        self.calls += 1
        (scratch / f"{unit.id}.txt").write_text(self.text)
        keys = [sample_key("letters", row) for row in range(self.rows)]
        return UnitOutput(
            (f"{unit.id}.txt",), ledger_table(keys, [OK_VERDICT] * self.rows), {"text": self.text}
        )


@pytest.fixture
def job(tmp_path: Path, load_tiny: LoadTiny) -> StageJob:
    recipe = load_tiny(tmp_path)
    folder = str(tmp_path / "out")
    return StageJob("letters", "letters", recipe, folder, "f" * 12, {}, (UNIT,), shown_corpora=("letters",))


def test_a_receipt_names_every_file_with_its_checksum(job: StageJob) -> None:
    receipt = run_unit(job, Letters(), UNIT)
    assert receipt.counts == {"ok": 3}
    assert [file.name for file in receipt.files] == ["00000.txt", "ledger/00000.parquet"]
    for file in receipt.files:
        found = digest(Path(job.folder) / file.name)
        assert (found.bytes, found.sha256, found.xxh3_128) == (file.bytes, file.sha256, file.xxh3_128)


def test_a_unit_with_a_receipt_is_not_done_again(job: StageJob) -> None:
    worker = Letters()
    first, second = run_unit(job, worker, UNIT), run_unit(job, worker, UNIT)
    assert (worker.calls, second) == (1, first)


def test_of_two_attempts_the_first_receipt_stays(job: StageJob) -> None:
    class Slow(Letters):
        def run(self, unit: Unit, scratch: Path) -> UnitOutput:
            other.append(run_unit(job, Letters(), unit))
            return super().run(unit, scratch)

    other: list[Receipt] = []
    assert run_unit(job, Slow(), UNIT) == other[0]
    assert read_receipts(job.store()) == {"00000": other[0]}


def test_a_ledger_that_does_not_close_leaves_no_receipt(job: StageJob) -> None:
    with pytest.raises(AssertionError, match="2 rows of 3"):
        run_unit(job, Letters(rows=2), UNIT)
    assert read_receipts(job.store()) == {}


def test_a_key_twice_leaves_no_receipt(job: StageJob) -> None:
    class Twice(Letters):
        def run(self, unit: Unit, scratch: Path) -> UnitOutput:
            output = super().run(unit, scratch)
            keys = [sample_key("letters", 0)] * 3
            return UnitOutput(output.files, ledger_table(keys, [OK_VERDICT] * 3))

    with pytest.raises(AssertionError, match="a key twice"):
        run_unit(job, Twice(), UNIT)
    assert read_receipts(job.store()) == {}


@pytest.mark.parametrize("moment", ["before", "during", "as the receipt is put"])
def test_a_unit_that_names_a_forgotten_sample_is_open_whenever_that_was_asked(
    moment: str, job: StageJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_if_absent = Store.put_if_absent

    def ask(when: str) -> None:
        if when == moment:
            asked = Tombstones(keys=frozenset({sample_key("letters", 1).hex()}))
            Store(job.recipe.root).put_bytes(asked.to_bytes(), "letters/tombstones.json")

    class Asked(Letters):
        def run(self, unit: Unit, scratch: Path) -> UnitOutput:
            ask("during")
            return super().run(unit, scratch)

    def put(store: Store, data: bytes, name: str) -> bool:
        ask("as the receipt is put")
        return put_if_absent(store, data, name)

    ask("before")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_if_absent", put)
        with pytest.raises(OSError, match="forgotten since it began: it is open again"):
            run_unit(job, Asked(), UNIT)
    assert read_receipts(job.store()) == {}


def test_a_source_is_written_again_whoever_was_forgotten(job: StageJob) -> None:
    asked = Tombstones(keys=frozenset({sample_key("letters", 1).hex()}))
    Store(job.recipe.root).put_bytes(asked.to_bytes(), "letters/tombstones.json")
    assert run_unit(replace(job, shown_corpora=()), Letters(), UNIT).counts == {"ok": 3}


def test_a_unit_is_open_again_where_an_address_was_forgotten_that_only_its_download_knows(
    job: StageJob,
) -> None:
    class Asked(Letters):
        def run(self, unit: Unit, scratch: Path) -> UnitOutput:
            asked = Tombstones(urls=frozenset({url_hash("http://example.org/a.jpg")}))
            Store(job.recipe.root).put_bytes(asked.to_bytes(), "letters/tombstones.json")
            return super().run(unit, scratch)

    with pytest.raises(OSError, match="forgotten since it began"):
        run_unit(job, Asked(), UNIT)
    assert run_unit(job, Letters(), UNIT).counts == {"ok": 3}


def test_put_if_absent_writes_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.put_if_absent(b"one", "a/b.json")
    assert not store.put_if_absent(b"two", "a/b.json")
    assert store.read("a/b.json") == b"one"
    assert [name for name, _ in store.files()] == ["a/b.json"]


def test_a_store_finds_out_that_local_folders_honour_put_if_absent(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.honours_put_if_absent()
    assert list(store.files()) == []


def test_a_key_depends_on_corpus_and_row_alone() -> None:
    assert sample_key("a", 1) == sample_key("a", 1)
    assert len({sample_key(corpus, row) for corpus in ("a", "b") for row in range(100)}) == 200
    assert len(sample_key("a", 1)) == 16


def test_a_receipt_survives_its_file_form(job: StageJob) -> None:
    receipt = run_unit(job, Letters(), UNIT)
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    assert json.loads(receipt.to_bytes())["facts"] == {"text": "abc"}

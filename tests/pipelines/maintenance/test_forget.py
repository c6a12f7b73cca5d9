"""Forgotten samples are in no shard any more, all else is as it was, and no later run brings them back."""

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.infra.digests import digest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.commit import run_unit
from dualtoken.pipelines.core.ledger import sample_key
from dualtoken.pipelines.core.receipts import PICTURES, Receipt, done_units, read_manifest, receipt_name
from dualtoken.pipelines.core.stage import Unit, UnitOutput
from dualtoken.pipelines.core.tombstones import Tombstones, url_hash
from dualtoken.pipelines.curation.score import Worker
from dualtoken.pipelines.errors import TokenAlarm, UserError
from dualtoken.pipelines.images.drop_samples import drop_samples
from dualtoken.pipelines.maintenance import forget as forget_module
from dualtoken.pipelines.maintenance.deep_verify import DeepSettings, deep_verify
from dualtoken.pipelines.maintenance.forget import forget
from dualtoken.pipelines.maintenance.forget_plan import ForgetPlan, plan_forget
from dualtoken.pipelines.maintenance.verify import verify
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shards import read_data_shard
from tests.helpers.damage import findings_below
from tests.helpers.tiny_run import LoadTiny, planned, planned_job, tokens_job
from tests.helpers.token_datasets import rows_by_key

CORPUS = "tiny-train"
STAGES = ("download", "score", "filter", "targets", "pretokenize")


@pytest.fixture
def recipe(tmp_path: Path, finished: Recipe, load_tiny: LoadTiny) -> Recipe:
    shutil.copytree(finished.root, tmp_path / "copy")
    return load_tiny(tmp_path / "copy")


def tokens(recipe: Recipe) -> TokenDataset:
    job = tokens_job(recipe)
    return TokenDataset(job.folder)


def second_key(recipe: Recipe) -> bytes:
    return tokens(recipe).read(np.array([1])).keys[0].tobytes()


def plan_for(recipe: Recipe, *keys: bytes) -> ForgetPlan:
    return plan_forget(Store(recipe.root), CORPUS, Tombstones(keys=frozenset(key.hex() for key in keys)))


def test_a_sample_goes_from_every_stage_and_the_others_stay_as_they_were(recipe: Recipe) -> None:
    key, before = second_key(recipe), rows_by_key(tokens(recipe))
    fingerprints = {one.label: one.job.fingerprint for one in Planner(recipe).plan() if one.job}
    untouched = {file: file.stat().st_mtime_ns for file in Path(recipe.root).rglob("00009.*")}
    assert [one.record.stage for one in plan_for(recipe, key).affected] == list(STAGES)
    forget(plan_for(recipe, key), lambda _: None)
    after = tokens(recipe)
    assert rows_by_key(after) == {one: said for one, said in before.items() if one != key}
    assert {file: file.stat().st_mtime_ns for file in untouched} == untouched
    plan = list(Planner(recipe).plan())
    assert {one.label: one.job.fingerprint for one in plan if one.job} == fingerprints
    assert [one.label for one in plan if not one.manifest] == ["report"]
    said: list[str] = []
    checked = [
        deep_verify(one, DeepSettings(sample=100), said.append) for one in verify(f"{recipe.root}/{CORPUS}")
    ]
    assert [finding for one in checked for finding in one.findings] == []
    assert plan_for(recipe, key).affected == ()


def test_pictures_in_the_log_of_a_training_go_with_any_of_its_samples(recipe: Recipe) -> None:
    job = planned_job(recipe, "train")
    assert list(job.store().files(PICTURES))
    said: list[str] = []
    forget(plan_for(recipe, second_key(recipe)), said.append)
    assert not list(job.store().files(PICTURES))
    assert f"{job.folder}/{PICTURES}: pictures of training images taken away" in said
    assert job.store().exists("logs/metrics.jsonl")


def said_in(file: Path) -> str:
    """Return all that a file says: tables decoded, and the names and texts in an image shard's tar."""
    if file.suffix == ".parquet":
        return str(pq.ParquetFile(file).read().to_pylist())
    if file.suffix == ".arrow":
        return str(read_data_shard(file).to_pylist())
    return file.read_bytes().decode("latin-1")


def test_its_image_and_texts_are_in_no_file_and_the_funnel_still_closes(recipe: Recipe) -> None:
    job = planned_job(recipe, "download", CORPUS)
    row = pq.read_table(f"{job.folder}/00000.parquet").slice(1, 1).to_pylist()[0]
    key = row["sample_key"]
    files = [
        file for file in Path(recipe.root).rglob("*") if file.is_file() and "scenes" not in file.parts
    ]  # the source itself
    traces = {row["caption"]: 3, row["sha256"]: 3, str(key): 9}
    for trace, least in traces.items():
        assert sum(trace in said_in(file) for file in files) >= least, "a search that finds nothing"
    forget(plan_for(recipe, key), lambda _: None)
    left = {trace: [file for file in files if file.exists() and trace in said_in(file)] for trace in traces}
    # Where it was, so that names and the ledger stay whole.
    assert left.pop(str(key)) == [
        file for file in files if file.parent == Path(job.folder) and file.name == "00000.parquet"
    ] + [Path(job.folder) / "ledger/00000.parquet"]
    assert not any(left.values())
    assert key.hex() in (Path(recipe.root) / CORPUS / "tombstones.json").read_text()
    download, score, *_, pretokenize = [planned(recipe, stage, CORPUS).manifest for stage in STAGES]
    assert download
    assert score
    assert pretokenize
    assert download.counts == {"forgotten": 1, "ok": 39}
    assert (download.version, score.rows_in, pretokenize.rows_in) == (2, 39, len(tokens(recipe)))


@pytest.mark.parametrize("stage", ["download", "pretokenize"])
def test_a_unit_that_runs_again_gives_the_bytes_that_forgetting_left(recipe: Recipe, stage: str) -> None:
    forget(plan_for(recipe, second_key(recipe)), lambda _: None)
    job = planned_job(recipe, stage, CORPUS)
    files = {
        file: digest(file) for file in Path(job.folder).rglob("*0000*") if file.parent.name != "receipts"
    }
    manifest = read_manifest(job.store())
    job.store().remove("manifest.json")
    job.store().remove("receipts/00000.json")
    run_command(stage, recipe, LocalExecutor(), lambda _: None, [CORPUS])
    assert {file: digest(file) for file in files} == files
    again = read_manifest(job.store())
    assert manifest is not None
    assert again is not None
    assert (again.root_hash, again.lineage, again.version) == (manifest.root_hash, manifest.lineage, 2)


class Killed(Exception):
    """At the n-th write to storage."""


def dying(patch: pytest.MonkeyPatch, after: int) -> None:
    """Let so many writes to storage happen, and die at the next."""
    done: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(Store, name)

        def write(*given: Any, **named: Any) -> Any:
            if len(done) == after:
                raise Killed
            done.append(name)
            return real(*given, **named)

        patch.setattr(Store, name, write)

    for name in ("put", "put_bytes", "put_if_absent", "remove"):
        wrap(name)


def test_killed_at_any_write_what_has_a_manifest_is_whole_and_the_next_call_ends_it(
    finished: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = "tiny-heldout"
    job = tokens_job(finished, corpus)
    folder = Path(job.folder).relative_to(Store(finished.root).url)
    key = TokenDataset(job.folder).read(np.array([1])).keys[0].tobytes()
    wanted = Tombstones(keys=frozenset({key.hex()}))
    after = 0
    while True:
        root = tmp_path / str(after)
        for part in (corpus, "models"):
            shutil.copytree(
                Path(finished.root) / part, root / part, copy_function=os.link
            )  # files are replaced, never written into
        store = Store(str(root))
        with monkeypatch.context() as patch:
            plan = plan_forget(store, corpus, wanted)
            dying(patch, after)
            try:
                forget(plan, lambda _: None)
            except Killed:
                pass
            else:
                break
        if (root / folder / "manifest.json").exists():
            assert findings_below(root / folder) == [], "a reader takes it for whole"
        forget(plan_forget(store, corpus, Tombstones() if after else wanted), lambda _: None)
        assert findings_below(root / corpus) == []
        assert plan_forget(store, corpus, Tombstones()).affected == ()
        shutil.rmtree(root)
        after += 1
    assert after > 30, "few writes"


def test_a_folder_that_an_alarm_left_unfinished_is_finished_by_the_next_call(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alarm(*_: object) -> None:
        raise TokenAlarm("shard 00000: drift")

    key, folder = second_key(recipe), tokens(recipe).url
    finish = forget_module.finish
    with monkeypatch.context() as patch:
        patch.setattr(
            forget_module, "finish", lambda job: alarm() if job.stage == "pretokenize" else finish(job)
        )
        with pytest.raises(TokenAlarm):
            forget(plan_for(recipe, key), lambda _: None)
    with pytest.raises(ValueError, match="unfinished"):
        TokenDataset(folder)
    (left,) = plan_for(recipe).affected
    assert (left.store.url, left.shards) == (folder, [])
    forget(plan_for(recipe), lambda _: None)
    assert key not in rows_by_key(TokenDataset(folder))


def test_until_it_has_ended_runs_are_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise Killed

    plan = plan_for(recipe, second_key(recipe))
    with monkeypatch.context() as patch:
        patch.setattr(forget_module, "_commit", die)
        with pytest.raises(Killed):
            forget(plan, lambda _: None)
    with pytest.raises(UserError, match="`dualtoken forget` was cut short here"):
        run_command("download", recipe, LocalExecutor(), lambda _: None)


def test_a_unit_that_read_a_sample_before_it_was_forgotten_is_not_committed_and_gives_it_up_when_done_again(
    recipe: Recipe,
) -> None:
    job, key = planned(recipe, "score", CORPUS).job, second_key(recipe)
    assert job is not None
    job.store().remove("manifest.json")
    job.store().remove("receipts/00000.json")

    class BackgroundThread:
        def run(self, unit: Unit, scratch: Path) -> UnitOutput:
            output = Worker(job).run(unit, scratch)
            forget(plan_for(recipe, key), lambda _: None)
            return output

    with pytest.raises(OSError, match="forgotten since it began"):
        run_unit(job, BackgroundThread(), job.units[0])
    assert "00000" not in done_units(job.store())
    run_unit(job, Worker(job), Unit("00000", 3))
    assert key not in pq.read_table(f"{job.folder}/00000.parquet")["key"].to_pylist()


def test_images_in_folders_of_a_tar_go_by_the_same_key_as_they_are_read_by(tmp_path: Path) -> None:
    names = ["a/00000", "b/00000"]
    rows = [
        {"key": name, "sample_key": sample_key("web", row), "status": "success", "reason": ""}
        for row, name in enumerate(names)
    ]
    with tarfile.open(tmp_path / "before.tar", "w") as tar:
        for name in names:
            for suffix in ("jpg", "json"):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = 3
                tar.addfile(member, io.BytesIO(b"abc"))
    drop_samples(
        tmp_path / "before.tar",
        pa.Table.from_pylist(rows),
        frozenset({sample_key("web", 1)}),
        tmp_path,
        "00000",
    )
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert tar.getnames() == ["a/00000.jpg", "a/00000.json"]


def test_after_a_kill_between_a_shard_and_its_receipt_no_row_has_another_ones_psnr(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tokens_job(recipe)
    name = receipt_name("00000")
    before = Receipt.from_bytes(job.store().read(name)).facts["audit"]
    key = tokens(recipe).read(np.array([0])).keys[0].tobytes()
    put_bytes = Store.put_bytes

    def die(store: Store, data: bytes, file: str) -> None:
        if (store.url, file) == (job.folder, name):
            raise Killed
        put_bytes(store, data, file)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_bytes", die)
        with pytest.raises(Killed):
            forget(plan_for(recipe, key), lambda _: None)
    forget(plan_for(recipe), lambda _: None)
    after = Receipt.from_bytes(job.store().read(name)).facts["audit"]
    assert len(before["looked_at"]) > 1
    assert (after["rows"], after["looked_at"], after["psnr"]) == (before["rows"] - 1, [], [])
    assert findings_below(Path(job.folder)) == []


def test_addresses_and_hosts_are_matched_and_hosts_below_a_host_too() -> None:
    key, address = sample_key("web", 0), "https://Img.Example.org/a.jpg"
    assert Tombstones(urls=frozenset({url_hash(address)})).match(key, address)
    for host, expected in (
        ("example.org", True),
        ("img.example.org", True),
        ("ample.org", False),
        ("a.example.org", False),
    ):
        assert Tombstones(hosts=frozenset({host})).match(key, address) == expected
    assert not Tombstones(hosts=frozenset({"example.org"})).match(key, None)


def test_samples_of_a_host_are_found_in_a_binary_column(recipe: Recipe) -> None:
    table_file = Path(planned_job(recipe, "download", CORPUS).folder) / "00000.parquet"
    table = pq.read_table(table_file)
    urls = [f"http://IMG.Example.org.:80/{row}".encode() for row in range(table.num_rows)]
    place = table.schema.get_field_index("url")
    pq.write_table(table.set_column(place, "url", pa.array(urls, pa.large_binary())), table_file)
    plan = plan_forget(Store(recipe.root), CORPUS, Tombstones(hosts=frozenset({"example.org"})))
    assert [folder.record.stage for folder in plan.affected] == list(STAGES)
    assert plan.affected[0].num_samples == table.num_rows

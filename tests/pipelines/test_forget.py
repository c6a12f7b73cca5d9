"""Forgotten samples are in no shard any more, all else is as it was, and no later run brings them back."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from infra.storage import digest
from pipelines import forget as forgetting
from pipelines.config import Recipe
from pipelines.deep_check import DeepSettings, deepen
from pipelines.errors import UserError
from pipelines.forget import forget
from pipelines.forget_plan import Plan, plan_forget
from pipelines.ledger import sample_key
from pipelines.plan import Planner
from pipelines.receipts import read_manifest
from pipelines.run import run_command
from pipelines.run_local import LocalExecutor
from pipelines.token_reader import TokenDataset
from pipelines.tombstones import Tombstones, url_hash
from pipelines.verify import verify
from tests.conftest import LoadTiny, planned

CORPUS = "tiny-train"
STAGES = ("download", "score", "filter", "targets", "pretokenize")


@pytest.fixture
def recipe(tmp_path: Path, finished: Recipe, load_tiny: LoadTiny) -> Recipe:
    shutil.copytree(finished.root, tmp_path / "copy")
    return load_tiny(tmp_path / "copy")


def tokens(recipe: Recipe) -> TokenDataset:
    job = planned(recipe, "pretokenize", CORPUS).job
    assert job is not None
    return TokenDataset(job.folder)


def rows(dataset: TokenDataset) -> dict[bytes, tuple[bytes, str]]:
    numbers = np.arange(len(dataset))
    read = dataset.read(numbers)
    assert read.pixel is not None
    codes = zip(read.keys, read.pixel, dataset.captions(numbers), strict=True)
    return {key.tobytes(): (pixel.tobytes(), caption) for key, pixel, caption in codes}


def second_key(recipe: Recipe) -> bytes:
    return tokens(recipe).read(np.array([1])).keys[0].tobytes()


def plan_for(recipe: Recipe, *keys: bytes) -> Plan:
    return plan_forget(Store(recipe.root), CORPUS, Tombstones(keys=frozenset(key.hex() for key in keys)))


def test_a_sample_goes_from_every_stage_and_the_others_stay_as_they_were(recipe: Recipe) -> None:
    key, before = second_key(recipe), rows(tokens(recipe))
    fingerprints = {one.label: one.job.fingerprint for one in Planner(recipe).plan() if one.job}
    untouched = {file: file.stat().st_mtime_ns for file in Path(recipe.root).rglob("00009.*")}
    assert [one.record.stage for one in plan_for(recipe, key).affected] == list(STAGES)
    forget(plan_for(recipe, key), lambda _: None)
    after = tokens(recipe)
    assert rows(after) == {one: said for one, said in before.items() if one != key}
    assert {file: file.stat().st_mtime_ns for file in untouched} == untouched
    plan = list(Planner(recipe).plan())
    assert {one.label: one.job.fingerprint for one in plan if one.job} == fingerprints
    assert [one.label for one in plan if not one.manifest] == ["report"]
    said: list[str] = []
    checked = [deepen(one, DeepSettings(sample=100), said.append) for one in verify(f"{recipe.root}/{CORPUS}")]
    assert [finding for one in checked for finding in one.findings] == []
    assert plan_for(recipe, key).affected == ()


def test_its_image_and_texts_are_in_no_file_and_the_funnel_still_closes(recipe: Recipe) -> None:
    key = second_key(recipe)
    caption = rows(tokens(recipe))[key][1].encode()
    forget(plan_for(recipe, key), lambda _: None)
    manifests = [planned(recipe, stage, CORPUS).manifest for stage in STAGES]
    download, score, *_, pretokenize = manifests
    assert download
    assert score
    assert pretokenize
    assert download.counts == {"forgotten": 1, "ok": 39}
    assert (download.version, score.rows_in, pretokenize.rows_in) == (2, 39, len(tokens(recipe)))
    job = planned(recipe, "download", CORPUS).job
    assert job is not None
    assert not any(caption in file.read_bytes() for file in Path(job.folder).rglob("*.tar"))


@pytest.mark.parametrize("stage", ["download", "pretokenize"])
def test_a_unit_that_runs_again_gives_the_bytes_that_forgetting_left(recipe: Recipe, stage: str) -> None:
    forget(plan_for(recipe, second_key(recipe)), lambda _: None)
    job = planned(recipe, stage, CORPUS).job
    assert job is not None
    files = {file: digest(file) for file in Path(job.folder).rglob("*0000*") if file.parent.name != "receipts"}
    manifest = read_manifest(job.store())
    job.store().remove("manifest.json")
    job.store().remove("receipts/00000.json")
    run_command(stage, recipe, LocalExecutor(), lambda _: None, [CORPUS])
    assert {file: digest(file) for file in files} == files
    again = read_manifest(job.store())
    assert manifest is not None
    assert again is not None
    assert (again.root_hash, again.lineage, again.version) == (manifest.root_hash, manifest.lineage, 2)


def test_killed_at_any_folder_it_is_refused_by_readers_and_runs_and_ends_when_called_again(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, folder = second_key(recipe), tokens(recipe).url

    class Killed(Exception):
        pass

    def die(*_: object) -> None:
        raise Killed

    plan = plan_for(recipe, key)
    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_commit", die)
        with pytest.raises(Killed):
            forget(plan, lambda _: None)
    with pytest.raises(ValueError, match="unfinished"):
        TokenDataset(folder)
    with pytest.raises(UserError, match="`dualtoken forget` was cut short here"):
        run_command("download", recipe, LocalExecutor(), lambda _: None)
    forget(plan_forget(Store(recipe.root), CORPUS, Tombstones()), lambda _: None)
    assert key not in rows(TokenDataset(folder))
    assert [finding for one in verify(f"{recipe.root}/{CORPUS}") for finding in one.findings] == []


def test_addresses_and_hosts_are_matched_and_hosts_below_a_host_too() -> None:
    key, address = sample_key("web", 0), "https://Img.Example.org/a.jpg"
    assert Tombstones(urls=frozenset({url_hash(address)})).match(key, address)
    for host, expected in (("example.org", True), ("img.example.org", True), ("ample.org", False), ("a.example.org", False)):
        assert Tombstones(hosts=frozenset({host})).match(key, address) == expected
    assert not Tombstones(hosts=frozenset({"example.org"})).match(key, None)

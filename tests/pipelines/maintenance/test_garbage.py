"""What nothing needs is found and deleted, what is needed or young stays; on disk and on S3."""

import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import Manifest, StageRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.maintenance.garbage import Garbage, GarbageKind, delete, find_garbage, totals
from dualtoken.pipelines.runtime.plan import Planner
from tests.helpers.damage import findings_below
from tests.helpers.s3_servers import s3_server
from tests.helpers.tiny_run import LoadTiny, planned, planned_job, tokens_job

LATER = time.time() + 7200
HOUR = 3600.0


@pytest.fixture(params=["local", "rclone"])
def root(request: pytest.FixtureRequest, tmp_path: Path, finished: Recipe) -> Iterator[Store]:
    """A copy of the finished run, of which only the parts that matter here are on S3."""
    with (
        nullcontext(str(tmp_path / "test"))
        if request.param == "local"
        else s3_server("rclone", tmp_path) as bucket
    ):
        for part in ("tiny-heldout", "models"):
            shutil.copytree(Path(finished.root) / part, tmp_path / "test/run" / part)
        yield Store(f"{bucket}/run")


@pytest.fixture
def copy(tmp_path: Path, finished: Recipe) -> Store:
    shutil.copytree(finished.root, tmp_path / "copy")
    return Store(str(tmp_path / "copy"))


def found_with_checkpoints(root: Store, *recipes: Recipe, now: float = LATER) -> list[Garbage]:
    return list(find_garbage(root, recipes, HOUR, now))


def found(root: Store, *recipes: Recipe, now: float = LATER) -> list[Garbage]:
    """Return the garbage of a root but the checkpoints of its trainings, which are finished."""
    garbage = found_with_checkpoints(root, *recipes, now=now)
    return [one for one in garbage if one.kind != GarbageKind.CHECKPOINTS]


def test_a_finished_run_needs_all_that_it_has(finished: Recipe, load_tiny: LoadTiny) -> None:
    root = Store(finished.root)
    assert found(root) == []
    assert found(root, load_tiny(Path(finished.root))) == []


def test_orphans_are_named_and_deleted_and_nothing_else(root: Store, finished: Recipe) -> None:
    job = tokens_job(finished, "tiny-heldout")
    tokens = f"tiny-heldout/tokens/{job.fingerprint}"
    root.remove(f"{tokens}/receipts/00001.json")
    orphans = {
        f"{tokens}/data/00001.arrow": GarbageKind.NO_RECEIPT,
        f"{tokens}/meta/00001.parquet": GarbageKind.NO_RECEIPT,
        f"{tokens}/ledger/00001.parquet": GarbageKind.NO_RECEIPT,
        f"{tokens}/data/00000.arrow.bak": GarbageKind.UNNAMED,
        f"{tokens}/data/.00000.arrow.0123.part": GarbageKind.LEFTOVER,
        ".probe-0123": GarbageKind.LEFTOVER,
    }
    for name in [name for name, kind in orphans.items() if kind != GarbageKind.NO_RECEIPT]:
        root.put_bytes(b"stray", name)
    root.put_bytes(b"a user's", "notes.txt")
    before = {file.name for file in root.entries()}
    assert found(root, now=time.time()) == []
    garbage = found(root)
    assert {one.name: one.kind for one in garbage} == orphans
    assert totals(garbage)[GarbageKind.LEFTOVER] == (2, 10)
    delete(root, garbage)
    assert before - {file.name for file in root.entries()} == set(orphans)
    assert found(root) == []


def test_what_a_run_wrote_or_committed_since_it_was_listed_is_kept(root: Store, finished: Recipe) -> None:
    job = tokens_job(finished, "tiny-heldout")
    tokens = f"tiny-heldout/tokens/{job.fingerprint}"
    receipts = {unit: root.read(f"{tokens}/receipts/{unit}.json") for unit in ("00000", "00001")}
    for unit in receipts:
        root.remove(f"{tokens}/receipts/{unit}.json")
    garbage = [one for one in found(root) if "/data/" in one.name]
    listed = [
        one._replace(files=tuple(file._replace(modified=file.modified - 7200) for file in one.files))
        for one in garbage[1:]
    ]
    root.put_bytes(receipts["00000"], f"{tokens}/receipts/00000.json")
    # As if it had been listed two hours before it was written.
    assert delete(root, [garbage[0], *listed]) == [garbage[0], *listed]
    assert [one.name for one in garbage] == [f"{tokens}/data/{unit}.arrow" for unit in receipts]
    assert all(root.exists(one.name) for one in garbage)


def test_a_folder_that_a_run_went_on_in_since_it_was_listed_is_kept(
    copy: Store, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    (garbage,) = found(copy, load_tiny(tmp_path / "copy", "report.num_images=5"))
    copy.put_bytes(b"new", f"{garbage.name}new.html")
    assert delete(copy, [garbage]) == [garbage]
    assert all(copy.exists(file.name) for file in garbage.files)


def test_models_that_a_recipe_or_a_needed_folder_names_are_needed(
    copy: Store, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    plain, jobs = load_tiny(tmp_path / "copy"), {}
    for step, kind in (("train", "tokenizer"), ("teacher", "teacher")):
        jobs[step] = planned(plain, step).job
        assert jobs[step]
        shutil.copytree(jobs[step].folder, copy.path(f"models/{kind}/{'0' * 12}"))
    start, given = (f"models/{kind}/{'0' * 12}" for kind in ("tokenizer", "teacher"))
    assert {one.name for one in found(copy, plain)} == {f"{start}/", f"{given}/"}
    started = load_tiny(tmp_path / "copy", f"train.start_from={copy.path(start)}")
    assert f"{start}/" not in {one.name for one in found(copy, started)}
    assert f"{given}/" not in {
        one.name
        for one in found(
            copy, load_tiny(tmp_path / "copy", f"teacher={{kind: local, folder: {copy.path(given)}}}")
        )
    }
    # A needed folder that says so itself, though the run was moved since.
    store = Store(jobs["train"].folder)
    record = StageRecord.from_bytes(store.read("stage.json"))
    record.recipe["train"]["start_from"] = f"s3://bucket/before/{start}"
    store.put_bytes(record.to_bytes(), "stage.json")
    assert {one.name for one in found(copy, plain)} == {f"{given}/"}


def test_a_fingerprint_that_no_recipe_refers_to_goes_whole_and_the_others_stay(
    copy: Store, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    old = planned_job(load_tiny(tmp_path / "copy"), "filter", "tiny-train")
    other = copy.path(f"tiny-train/decision/{'0' * 12}")
    shutil.copytree(old.folder, other)
    recipe = load_tiny(tmp_path / "copy")
    (garbage,) = found(copy, recipe)
    assert (garbage.kind, garbage.name) == (GarbageKind.OLD, f"tiny-train/decision/{'0' * 12}/")
    assert garbage.bytes == sum(file.stat().st_size for file in Path(other).rglob("*") if file.is_file())
    delete(copy, [garbage])
    assert not Path(other).exists()
    assert findings_below(copy.url) == []


def test_while_an_input_is_unfinished_all_fingerprints_that_may_be_its_are_kept(
    copy: Store, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    changed = load_tiny(tmp_path / "copy", "train.steps=5")
    assert found(copy, changed) == []  # its tokens are not known yet, and the old ones need the old tokenizer


def test_several_recipes_keep_what_any_of_them_refers_to(
    copy: Store, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    one = load_tiny(tmp_path / "copy")
    less = one.model_copy(
        update={"corpora": one.corpora, "report": one.report.model_copy(update={"num_images": 5})}
    )
    assert {garbage.name.split("/")[0] for garbage in found(copy, less)} == {"reports"}
    assert found(copy, less, one) == []
    assert all(step.manifest for step in Planner(one).plan())


def test_a_folder_killed_while_it_was_deleted_is_unfinished_and_found_again(
    copy: Store, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    less = load_tiny(tmp_path / "copy", "report.num_images=5")
    (garbage,) = found(copy, less)

    class Killed(Exception):
        pass

    class Dying(Store):
        calls = 0

        def remove(self, name: str) -> None:
            self.calls += 1
            if self.calls > 2:
                raise Killed
            super().remove(name)

    with pytest.raises(Killed):
        delete(Dying(copy.url), [garbage])
    left = {file.name for file in copy.entries(garbage.name.rstrip("/"))}
    assert not any(name.endswith(("manifest.json", "receipts/report.json")) for name in left)
    assert [one.name for one in found(copy, less)] == [garbage.name]


def test_what_is_no_root_is_the_users_mistake(finished: Recipe, tmp_path: Path) -> None:
    job = planned_job(finished, "train")
    for folder, problem in ((tmp_path, "no stage below it"), (Path(job.folder), "one stage")):
        with pytest.raises(UserError, match=problem):
            found(Store(str(folder)))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_checkpoints_go_once_their_training_is_finished_and_no_repair_writes_new_ones(
    kind: str, tmp_path: Path
) -> None:
    root = Store(str(tmp_path) if kind == "local" else "memory://garbage")
    folder = "models/tokenizer/0"
    checkpoints = f"{folder}/checkpoints"
    stage = StageRecord(stage="train", corpus=None, fingerprint="0", identity={}, inputs={}, recipe={})
    root.put_bytes(stage.to_bytes(), f"{folder}/stage.json")
    root.put_bytes(b"weights", f"{checkpoints}/step-000000010/state.pt")
    root.put_bytes(b"snapshot", f"{checkpoints}/checkpoint_manager_snapshot.json")
    later = time.time() + 7200
    assert found_with_checkpoints(root, now=later) == [], "the training is under way"

    write_manifest(root.at(folder))
    assert found_with_checkpoints(root, now=time.time()) == [], "it may be written just now"
    (garbage,) = found_with_checkpoints(root, now=later)
    assert (garbage.kind, garbage.name) == (GarbageKind.CHECKPOINTS, f"{checkpoints}/")
    root.put_bytes(b"a later one", f"{checkpoints}/step-000000020/state.pt")
    assert delete(root, [garbage]) == [garbage]
    assert delete(root, found_with_checkpoints(root, now=later)) == []
    assert list(root.entries(checkpoints)) == []
    assert not root.is_local or not Path(root.path(checkpoints)).exists()
    assert {file.name for file in root.entries()} == {f"{folder}/stage.json", f"{folder}/manifest.json"}


def write_manifest(store: Store) -> None:
    """Write the manifest of a finished stage without units."""
    moment = "2020-01-01T00:00:00+00:00"
    manifest = Manifest(
        stage="train",
        corpus=None,
        fingerprint="0",
        root_hash="0",
        rows_in=0,
        counts={},
        units={},
        bytes=0,
        seconds=1.0,
        first_started_at=moment,
        last_finished_at=moment,
        files=(),
        details={},
    )
    store.put_bytes(manifest.to_bytes(), "manifest.json")

"""A recipe's subject is the model that was finished last, now or as of a night."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.nightly import RecipeSubject
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, STAGE_FILE, Manifest, StageRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.nightly.subjects import find_subjects, newest_model
from tests.helpers.nights import SmallNightly


def finish(root: Path, fingerprint: str, finished: str | None, recipe: str = "scenes") -> None:
    """Write the records of a training, finished at a moment or unfinished."""
    store = Store(f"{root}/models/tokenizer/{fingerprint}")
    values = load_recipe(recipe, [f"root={root}"]).model_dump(mode="json")
    record = StageRecord(
        stage="train", corpus=None, fingerprint=fingerprint, identity={}, inputs={}, recipe=values
    )
    store.put_bytes(record.to_bytes(), STAGE_FILE)
    if finished is None:
        return
    manifest = Manifest(
        stage="train",
        corpus=None,
        fingerprint=fingerprint,
        root_hash="0" * 64,
        rows_in=1,
        counts={},
        units={},
        bytes=1,
        seconds=1.0,
        first_started_at=finished,
        last_finished_at=finished,
        files=(),
        details={},
    )
    store.put_bytes(manifest.to_bytes(), MANIFEST_FILE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three trainings of a recipe, one of them unfinished, and one of another recipe."""
    finish(tmp_path, "cccccccccccc", "2026-11-01T12:00:00+00:00")
    finish(tmp_path, "aaaaaaaaaaaa", "2026-11-03T12:00:00+00:00")
    finish(tmp_path, "dddddddddddd", None)
    finish(tmp_path, "bbbbbbbbbbbb", "2026-11-04T12:00:00+00:00", "arm-dual")
    return tmp_path


def newest(root: Path, as_of: datetime | None = None) -> str:
    subject = RecipeSubject(kind="recipe", recipe="scenes", root=str(root))
    return newest_model(subject, as_of).rpartition("/")[2]


def test_the_newest_finished_model_of_the_recipe_is_taken(root: Path) -> None:
    assert newest(root) == "aaaaaaaaaaaa"


def test_a_night_long_past_takes_the_newest_that_was_finished_before_it(root: Path) -> None:
    assert newest(root, datetime(2026, 11, 3, 12, tzinfo=UTC)) == "cccccccccccc"
    assert newest(root, datetime(2026, 11, 3, 12, 0, 1, tzinfo=UTC)) == "aaaaaaaaaaaa"
    with pytest.raises(UserError, match=r"scenes has no finished model of train before 2026-11-01 00:00 UTC"):
        newest(root, datetime(2026, 11, 1, tzinfo=UTC))


def test_a_recipe_without_a_model_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"scenes has no finished model of train below .*: run `dualtoken train"
    ):
        newest(tmp_path)


def test_the_canary_comes_first_and_all_are_asked_the_same(tmp_path: Path, root: Path) -> None:
    subjects = {
        "model": {"kind": "folder", "folder": "s3://models/x"},
        "newest": {"kind": "recipe", "recipe": "scenes", "root": str(root)},
    }
    small = SmallNightly(tmp_path, subjects=subjects, canary={})
    found = find_subjects(small.spec)
    assert [(request.name, request.kind) for request in found] == [
        ("canary", "canary"),
        ("model", "folder"),
        ("newest", "recipe"),
    ]
    assert [request.place for request in found[:2]] == [None, "s3://models/x"]
    assert {(request.sets, request.protocols) for request in found} == {(("heldout",), ("plain",))}
    assert not any(request.backfilled for request in found)

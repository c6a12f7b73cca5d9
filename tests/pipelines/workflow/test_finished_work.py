"""The sensor that shows Dagster what commands have finished."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import extract_data_version_from_entry

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, read_manifest
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.workflow.assets import recipe_definitions
from dualtoken.pipelines.workflow.finished_work import SENSOR
from tests.helpers.tiny_run import LoadTiny, planned_job


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Records of a Dagster that knows nothing yet."""
    with dg.DagsterInstance.ephemeral() as empty:
        yield empty


def look(recipe: Recipe, instance: dg.DagsterInstance) -> list[dg.AssetMaterialization]:
    """Evaluate the sensor as Dagster's daemon does, and record what it shows."""
    definitions = recipe_definitions(recipe, lambda: pytest.fail("an executor was opened"), print)
    sensor = definitions.resolve_sensor_def(SENSOR)
    tick = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, definitions=definitions))
    assert not tick.run_requests
    shown: list[dg.AssetMaterialization] = []
    for event in tick.asset_events:
        assert isinstance(event, dg.AssetMaterialization)
        instance.report_runless_asset_event(event)
        shown.append(event)
    return shown


def places(events: list[dg.AssetMaterialization]) -> list[tuple[str, str | None]]:
    """Return the events' assets, each with its partition."""
    return [(event.asset_key.to_user_string(), event.partition) for event in events]


def test_what_commands_finished_is_shown_once_with_its_partition(
    finished: Recipe, instance: dg.DagsterInstance
) -> None:
    shown = look(finished, instance)
    assert places(shown) == [(one.stage, one.corpus) for one in Planner(finished).plan()]
    assert look(finished, instance) == []


def test_the_sensor_runs_without_being_switched_on(finished: Recipe) -> None:
    definitions = recipe_definitions(finished, lambda: pytest.fail("an executor was opened"), print)
    assert definitions.resolve_sensor_def(SENSOR).default_status is dg.DefaultSensorStatus.RUNNING


def test_unfinished_stages_are_not_shown(
    load_tiny: LoadTiny, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    assert look(load_tiny(tmp_path), instance) == []


def test_of_a_stage_with_other_content_only_that_partition_is_shown_again(
    load_tiny: LoadTiny, finished: Recipe, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    recipe = load_tiny(tmp_path / "copy")
    look(recipe, instance)
    store = planned_job(recipe, "pretokenize", "tiny-heldout").store()
    manifest = read_manifest(store)
    assert manifest is not None
    later = manifest.model_copy(
        update={"version": 2, "root_hash": "0" * 64, "lineage": manifest.lineage_hash}
    )
    Path(store.path(MANIFEST_FILE)).write_bytes(later.to_bytes())
    again = look(recipe, instance)
    assert places(again) == [("pretokenize", "tiny-heldout")]
    assert again[0].metadata["version"].value == 2


def test_the_version_of_the_data_is_its_fingerprint(finished: Recipe, instance: dg.DagsterInstance) -> None:
    look(finished, instance)
    entry = instance.get_latest_materialization_event(dg.AssetKey("train"))
    assert entry is not None
    version = extract_data_version_from_entry(entry)
    assert version is not None
    assert version.value == planned_job(finished, "train").fingerprint


def test_a_recipe_that_cannot_be_planned_is_a_tick_that_says_why(
    load_tiny: LoadTiny, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    missing = f"corpora.tiny-train.source={{kind: urls, table: {tmp_path}/missing.csv}}"
    recipe = load_tiny(tmp_path, missing)
    definitions = recipe_definitions(recipe, lambda: pytest.fail("an executor was opened"), print)
    tick = definitions.resolve_sensor_def(SENSOR).evaluate_tick(dg.build_sensor_context(instance=instance))
    assert "missing.csv" in str(tick.skip_message)

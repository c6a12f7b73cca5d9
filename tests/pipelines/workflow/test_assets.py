"""The Dagster face: assets, partitions, and errors that stay what they are."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import dagster as dg
import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.stage import UnitOutcome, Work
from dualtoken.pipelines.errors import ExitCode, UnitsFailed
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.stages import all_stages, commands
from dualtoken.pipelines.workflow.assets import JOB, recipe_definitions
from dualtoken.pipelines.workflow.finished_work import unknown_work
from dualtoken.pipelines.workflow.metadata import stage_metadata
from dualtoken.pipelines.workflow.run import run_workflow
from tests.helpers.tiny_run import LoadTiny, planned


class Unwanted:
    """An executor that nothing may be asked of."""

    def run(self, work: Sequence[Work]) -> list[UnitOutcome]:
        raise AssertionError(f"asked for {work[0].job.label}")


@pytest.fixture(scope="module")
def records(finished: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    """Return Dagster's own records of a run, below a home."""
    home = tmp_path_factory.mktemp("home")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        run_workflow(finished, LocalExecutor(), lambda _: None)
        with dg.DagsterInstance.get() as instance:
            yield instance


def test_every_command_is_an_asset_and_every_corpus_a_partition(load_tiny: LoadTiny, tmp_path: Path) -> None:
    job = recipe_definitions(load_tiny(tmp_path), lambda: nullcontext(Unwanted()), print).resolve_job_def(JOB)
    assert {key.path[-1] for key in job.asset_layer.executable_asset_keys} == set(commands())
    assert job.partitions_def is not None
    assert list(job.partitions_def.get_partition_keys()) == ["tiny-train", "tiny-heldout"]


def test_an_asset_is_described_by_its_commands_help(load_tiny: LoadTiny, tmp_path: Path) -> None:
    definitions = recipe_definitions(load_tiny(tmp_path), lambda: nullcontext(Unwanted()), print)
    for stage in all_stages():
        asset = dg.AssetKey(stage.name)
        assert definitions.resolve_assets_def(asset).descriptions_by_key[asset] == stage.help


def test_a_finished_run_asks_nothing_of_its_executor(finished: Recipe) -> None:
    said: list[str] = []
    run_workflow(finished, Unwanted(), said.append)
    assert said == []


def test_the_workflow_makes_what_is_missing_on_all_corpora_in_one_run(
    load_tiny: LoadTiny, tmp_path: Path, finished: Recipe
) -> None:
    recipe = load_tiny(tmp_path)
    run_workflow(recipe, LocalExecutor(), lambda _: None)
    ours = {one.label: one.manifest.root_hash for one in Planner(recipe).plan() if one.manifest}
    theirs = {one.label: one.manifest.root_hash for one in Planner(finished).plan() if one.manifest}
    # The report names times and folders of its own run.
    del ours["report"], theirs["report"]
    assert ours == theirs
    assert len(ours) == 17


def test_with_a_home_dagster_remembers_what_was_made(records: dg.DagsterInstance) -> None:
    assert records.get_latest_materialization_event(dg.AssetKey("report")) is not None


def test_each_partition_has_its_own_numbers(records: dg.DagsterInstance, finished: Recipe) -> None:
    for corpus in finished.corpora:
        chosen = dg.AssetRecordsFilter(dg.AssetKey("download"), asset_partitions=[corpus])
        (record,) = records.fetch_materializations(chosen, limit=2).records
        one = planned(finished, "download", corpus)
        assert one.job is not None
        assert one.manifest is not None
        assert record.asset_materialization is not None
        assert record.asset_materialization.metadata == stage_metadata(one.job, one.manifest)


def test_what_dagster_made_itself_is_not_shown_again(records: dg.DagsterInstance, finished: Recipe) -> None:
    assert list(unknown_work(finished, records)) == []


def test_a_failed_unit_ends_the_run_with_its_own_error(load_tiny: LoadTiny, tmp_path: Path) -> None:
    class Failing:
        def run(self, work: Sequence[Work]) -> list[UnitOutcome]:
            return [
                UnitOutcome(one.job.label, unit.id, {}, 0.0, "OSError: no space", ExitCode.TEMPORARY)
                for one in work
                for unit in one.units
            ]

    with pytest.raises(
        UnitsFailed,
        match="8 of 13 units failed, and 5 were not tried, which would fail alike; "
        "scenes tiny-train 00000: OSError: no space",
    ) as error:
        run_workflow(load_tiny(tmp_path), Failing(), lambda _: None)
    assert error.value.code == ExitCode.TEMPORARY

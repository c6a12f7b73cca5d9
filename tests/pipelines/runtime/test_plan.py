"""Plans: what is to do, what it waits for, and what changes a fingerprint."""

import shutil
from pathlib import Path

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import require_inputs, run_command
from tests.helpers.tiny_run import LoadTiny, planned, planned_job


def fingerprints(recipe: Recipe) -> dict[str, str | None]:
    return {one.label: one.job.fingerprint if one.job else None for one in Planner(recipe).plan()}


def test_a_new_run_can_do_its_first_stage_and_knows_the_size_of_the_rest(
    tmp_path: Path, load_tiny: LoadTiny
) -> None:
    plan = {one.label: one for one in Planner(load_tiny(tmp_path)).plan()}
    assert [label for label, one in plan.items() if one.job] == ["scenes tiny-train", "scenes tiny-heldout"]
    assert plan["pretokenize tiny-train"].waits_for[0].label == "download tiny-train"
    assert (plan["pretokenize tiny-train"].num_units, plan["pretokenize tiny-train"].num_rows) == (10, 40)
    assert not any(tmp_path.iterdir())


def test_a_finished_run_has_nothing_to_do(finished: Recipe) -> None:
    assert all(one.manifest and not one.units_to_do for one in Planner(finished).plan())


def test_a_changed_rule_runs_no_model_again(finished: Recipe, load_tiny: LoadTiny) -> None:
    before, after = (
        fingerprints(finished),
        fingerprints(load_tiny(Path(finished.root), "filter.rules.2.keep_fraction=0.5")),
    )
    changed = {label for label in before if before[label] != after[label]}
    assert {"filter tiny-train", "filter tiny-heldout"} <= changed
    assert not changed & {"download tiny-train", "teacher", "score tiny-train", "score tiny-heldout"}


def test_a_changed_setting_gives_a_new_folder_and_overwrites_nothing(
    finished: Recipe, load_tiny: LoadTiny
) -> None:
    changed = planned(load_tiny(Path(finished.root), "train.steps=5"), "train")
    before = planned(finished, "train")
    assert changed.job is not None
    assert before.job is not None
    assert changed.job.folder != before.job.folder
    assert changed.units_to_do


def test_how_wide_a_stage_runs_changes_no_fingerprint(finished: Recipe, load_tiny: LoadTiny) -> None:
    wide = load_tiny(
        Path(finished.root), "cluster.max_workers=7", "download.concurrency=3", "train.checkpoint_every=1"
    )
    assert fingerprints(wide) == fingerprints(finished)


def test_a_stage_whose_input_is_missing_names_the_command_to_run(tmp_path: Path, load_tiny: LoadTiny) -> None:
    with pytest.raises(UserError, match="run `dualtoken scenes` first"):
        require_inputs("filter", load_tiny(tmp_path))


def test_dense_targets_over_the_budget_are_refused_before_a_unit_runs(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    recipe = load_tiny(
        tmp_path / "copy", "targets.dense_budget_gb=1.0e-5", "filter.rules.2.keep_fraction=0.8"
    )
    run_command("filter", recipe, LocalExecutor(), lambda _: None)
    with pytest.raises(
        UserError, match=r"targets.dense_budget_gb=1e-05: raise it, or set targets.dense=false"
    ):
        run_command("targets", recipe, LocalExecutor(), lambda _: None)


def test_only_units_without_a_receipt_are_done_again(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    recipe = load_tiny(tmp_path / "copy")
    job = planned_job(recipe, "targets", "tiny-train")
    folder = Path(job.folder)
    (folder / "manifest.json").unlink()
    (folder / "receipts/00001.json").unlink()
    kept = (folder / "receipts/00000.json").stat().st_mtime_ns
    assert [unit.id for unit in planned(recipe, "targets", "tiny-train").units_to_do] == ["00001"]
    run_command("targets", recipe, LocalExecutor(), lambda _: None)
    assert (folder / "receipts/00000.json").stat().st_mtime_ns == kept
    original = planned(finished, "targets", "tiny-train").manifest
    again = planned(recipe, "targets", "tiny-train").manifest
    assert original is not None
    assert again is not None
    assert again.root_hash == original.root_hash


def test_every_rows_fate_is_counted_from_table_to_tokens(finished: Recipe) -> None:
    for corpus in finished.corpora:
        chain = [
            planned(finished, step, corpus).manifest
            for step in ("download", "score", "filter", "pretokenize")
        ]
        manifests = [manifest for manifest in chain if manifest]
        assert len(manifests) == 4
        assert all(sum(manifest.counts.values()) == manifest.rows_in for manifest in manifests)
        assert [manifest.counts["ok"] for manifest in manifests[:-1]] == [
            manifest.rows_in for manifest in manifests[1:]
        ]

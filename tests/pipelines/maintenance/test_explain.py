"""A changed fingerprint is traced to the key that changed it, in whichever step that key is."""

import json
import shutil
from pathlib import Path

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.maintenance.explain import Change, Explanation, explain
from dualtoken.pipelines.runtime.plan import Planner
from tests.helpers.tiny_run import LoadTiny, planned_job

STEPS = Change("train", "train.steps", "4", "5")
PIXELS = Change("filter tiny-train", "filter.rules.0.pixels", "16", "8")


def explained(recipe: Recipe, other: Recipe | None = None) -> dict[str, Explanation]:
    return {one.stage: one for one in explain(Planner(recipe), Planner(other) if other else None)}


def test_a_run_as_it_was_made_has_no_changes(finished: Recipe) -> None:
    said = explained(finished)
    assert all(one.changes == () and one.old == one.new for one in said.values())
    assert str(said["train"]) == f"train: the same, {said['train'].new}"


def test_a_changed_key_is_named_where_it_is_and_in_every_step_after_it(
    finished: Recipe, load_tiny: LoadTiny
) -> None:
    said = explained(load_tiny(Path(finished.root), "train.steps=5", "filter.rules.0.pixels=8"))
    before = planned_job(finished, "train")
    assert said["download tiny-train"].changes == ()
    assert said["filter tiny-train"].changes == (PIXELS,)
    assert said["targets tiny-train"].changes == (PIXELS,)
    assert (said["train"].old, said["train"].new) == (before.fingerprint, None)
    assert said["train"].changes == (STEPS, PIXELS)
    assert said["pretokenize tiny-train"].changes == (PIXELS, STEPS)
    assert str(STEPS) == "train: train.steps: 4 -> 5"


def test_two_recipes_are_compared_though_nothing_has_run(tmp_path: Path, load_tiny: LoadTiny) -> None:
    one, other = load_tiny(tmp_path, "download.image_size=48"), load_tiny(tmp_path)
    said = explained(one, other)
    assert said["download tiny-train"].changes == (
        Change("download tiny-train", "download.image_size", "32", "48"),
    )
    assert set(said["report"].changes) == {
        Change(f"download {corpus}", "download.image_size", "32", "48") for corpus in one.corpora
    }


def test_a_rule_that_came_or_went_is_shown_whole(finished: Recipe, load_tiny: LoadTiny) -> None:
    (change,) = explained(load_tiny(Path(finished.root), "filter.rules=[]"))["filter tiny-heldout"].changes
    assert (change.key, len(json.loads(change.old)), change.new) == ("filter.rules", 3, "[]")


def test_other_content_under_the_same_settings_is_told_apart_from_a_changed_key(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    recipe = load_tiny(tmp_path / "copy")
    job = planned_job(recipe, "download", "tiny-train")
    manifest = Path(job.folder) / "manifest.json"
    before = Manifest.from_bytes(manifest.read_bytes())
    manifest.write_bytes(before.model_copy(update={"root_hash": "f" * 64}).to_bytes())
    said = explained(recipe)
    change = Change("download tiny-train", "content under the same settings", before.root_hash[:12], "f" * 12)
    assert change in said["score tiny-train"].changes
    assert said["download tiny-train"].changes == ()


def test_a_step_that_never_ran_has_nothing_to_compare_with(tmp_path: Path, load_tiny: LoadTiny) -> None:
    assert not any(one.compared for one in explained(load_tiny(tmp_path)).values())


def test_keys_are_spelt_as_recipes_spell_them(tmp_path: Path, load_tiny: LoadTiny) -> None:
    changed = {
        "corpora.tiny-train.source.num_images=20": "scenes tiny-train",
        "download.rows_per_shard=8": "scenes tiny-train",
        "filter.batch_size=3": "score tiny-train",
        "targets.dense=false": "targets tiny-train",
        "tokenizer.semantic_block=1": "targets tiny-train",
        "pretokenize.precision=bfloat16": "pretokenize tiny-train",
        "train.use_gpu=true": "teacher",
    }
    before = load_tiny(tmp_path)
    for override, stage in changed.items():
        found = explained(load_tiny(tmp_path, override), before)[stage].changes
        assert override.split("=")[0] in {change.key for change in found if change.stage == stage}


def test_what_a_machine_has_costs_no_new_teacher_and_no_new_tokenizer(
    finished: Recipe, load_tiny: LoadTiny
) -> None:
    machine = (
        "cluster.num_cpus=4",
        "train.num_workers=2",
        "train.cpus_per_worker=2",
        "cluster.max_workers=1",
    )
    said = explained(load_tiny(Path(finished.root), *machine, "pretokenize.decode_threads=3"))
    assert all(one.changes == () and one.old == one.new for one in said.values())

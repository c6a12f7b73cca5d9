"""A recipe's `load` keys are the plan that a user would write by hand."""

from pathlib import Path

import pytest

from dualtoken.pipelines.config.corpora import HeldoutFraction
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.from_recipe import load_plan, plan_of_folders
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.loader.token_loader import TokenLoader
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.loader_workers import keys_in
from tests.helpers.tiny_run import LoadTiny, tokens_job

BOTH = "load.corpora=[tiny-heldout, tiny-train]"


def test_by_default_each_row_that_training_may_see_is_read_once(finished: Recipe) -> None:
    plan = load_plan(finished)
    (dataset,) = plan.datasets
    assert dataset.url == tokens_job(finished, "tiny-train").folder
    keys = keys_in(TokenLoader(plan, 7))
    assert keys.total() == len(keys) == len(dataset)


def test_each_key_is_that_of_a_plan_made_by_hand(
    finished: Recipe, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    settings = [
        BOTH,
        "load.weights={0: {tiny-train: 3, tiny-heldout: 1}, 100: {tiny-heldout: 1}}",
        "load.seed=5",
        "load.shuffle_shards=2",
        "load.streams=[semantic]",
        "load.check=never",
        f"load.cache={tmp_path}/cache",
        "load.with_captions=true",
        "load.on_damage=quarantine",
        f"load.damage_ledger={tmp_path}/lost.jsonl",
    ]
    plan = load_plan(load_tiny(finished.root, *settings))
    datasets = tuple(
        TokenDataset(tokens_job(finished, name).folder, streams=["semantic"])
        for name in ("tiny-heldout", "tiny-train")
    )
    by_hand = LoadPlan(datasets=datasets, weights={0: [1, 3], 100: [1, 0]}, seed=5, shuffle_shards=2)
    assert plan.identity() == by_hand.identity()
    assert [dataset.streams for dataset in plan.datasets] == [("semantic",)] * 2
    assert plan.with_captions is True
    assert plan.on_damage == "quarantine"
    assert plan.damage_ledger == tmp_path / "lost.jsonl"
    assert plan.tokenizer == plan.datasets[0].tokenizer_fingerprint
    epochs = load_plan(load_tiny(finished.root, BOTH, "load.epochs={tiny-train: 1.5}"))
    assert epochs.identity()["epochs"] == [0, 1.5]


def test_the_held_out_fraction_of_a_recipe_is_not_read(finished: Recipe) -> None:
    """Corpora of such a recipe are pretokenized whole."""
    whole = {"tiny-train": finished.corpora["tiny-train"]}
    held_out = HeldoutFraction(kind="fraction", fraction=0.3)
    recipe = finished.model_copy(update={"corpora": whole, "heldout": held_out})
    job = tokens_job(finished, "tiny-train")
    plan = plan_of_folders(recipe, {"tiny-train": job.folder}, load_plan(finished).tokenizer or "")
    keys = list(keys_in(TokenLoader(plan, 7)))
    assert min(map(key_fraction, keys)) >= 0.3
    assert 0.5 < len(keys) / len(plan.datasets[0]) < 0.9


def test_unfinished_tokens_name_what_to_run(tmp_path: Path, load_tiny: LoadTiny) -> None:
    with pytest.raises(UserError, match="the tokens of tiny-train are unfinished: run `dualtoken run` first"):
        load_plan(load_tiny(tmp_path))


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "load.epochs={tiny-heldout: 1}",
            "load names tiny-heldout: set load.corpora to some of tiny-train, tiny-heldout",
        ),
        ("load.corpora=[photos]", "load names photos"),
        ("load.epochs={photos: 1}", "load names photos"),
        ("load.weights={0: {tiny-train: 1, photos: 1}}", "load names photos"),
        ("load.weights={5: {tiny-train: 1}}", "load: weights do not begin at sample 0"),
        ("load.weights={0: {tiny-train: 0}}", "no corpus has a share over 0"),
        ("load.epochs={}", "no corpus has a share over 0"),
        (
            "load.cache=s3://bucket/cache",
            "s3://bucket/cache is a URL: give a folder or file of this machine's disks",
        ),
        ("load={shuffle: false, shuffle_shards: 3}", "load: shuffle_shards=3 with shuffle=false"),
        ("load.seed=-1", "load.seed=-1: should be greater than or equal to 0"),
        ("load.on_damage=quarantine", "load: on_damage=quarantine without damage_ledger"),
        (
            "load={weights: {0: {tiny-train: 1}}, epochs: {tiny-train: 1}}",
            "load: weights and epochs are both set",
        ),
    ],
)
def test_a_mistake_is_told_when_the_recipe_is_read(
    setting: str, problem: str, tmp_path: Path, load_tiny: LoadTiny
) -> None:
    with pytest.raises(UserError, match=problem):
        load_tiny(tmp_path, setting)

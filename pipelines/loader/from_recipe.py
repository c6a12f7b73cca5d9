"""From a recipe to what a training run reads: its finished token datasets, in the order and under the checks of its `load` keys."""

from pathlib import Path

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.load_plan import LoadPlan
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache


def load_plan(recipe: Recipe) -> LoadPlan:
    """Open the token datasets of a recipe's corpora, those of its own tokenizer alone.

    Raises `UserError` where one is unfinished, ValueError where it is none that may be trained from.
    """
    load, planner = recipe.load, Planner(recipe)
    corpora = load.corpora or recipe.training_corpora
    cache = ShardCache(Path(load.cache), int(load.cache_gb * 1e9)) if load.cache else None
    folders = [_folder(planner, name) for name in corpora]
    tokenizer = planner.get("train", None).job
    assert tokenizer is not None, "finished tokens have a finished tokenizer"
    weights = {
        first: [shares.get(name, 0) for name in corpora] for first, shares in (load.weights or {}).items()
    }
    return LoadPlan(
        datasets=tuple(
            TokenDataset(folder, streams=load.streams, check=load.check, cache=cache) for folder in folders
        ),
        tokenizer=tokenizer.fingerprint,
        weights=weights or None,
        epochs=tuple(load.epochs.get(name, 0) for name in corpora) if load.epochs else None,
        seed=load.seed,
        shuffle=load.shuffle,
        shuffle_shards=load.shuffle_shards,
        with_captions=load.with_captions,
        on_damage=load.on_damage,
        damage_ledger=Path(load.damage_ledger) if load.damage_ledger else None,
    )


def _folder(planner: Planner, corpus: str) -> str:
    planned = planner.get("pretokenize", corpus)
    if planned.job is None or planned.manifest is None:
        raise UserError(f"the tokens of {corpus} are unfinished: run `dualtoken run` first")
    return planned.job.folder

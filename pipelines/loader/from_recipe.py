"""From a recipe to a load plan: its finished token datasets, read as its `load` keys say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dualtoken.pipelines.config.load import LoadConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.plan import LoadPlan
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.tokens.reader import TokenDataset
from dualtoken.pipelines.tokens.shard_cache import ShardCache


def load_plan(recipe: Recipe) -> LoadPlan:
    """Open the token datasets of a recipe's corpora; only tokens of the recipe's own tokenizer are accepted.

    Raises `UserError` where a dataset is unfinished, ValueError where one cannot be trained from.
    """
    planner = Planner(recipe)
    folders = {corpus: _token_folder(planner, corpus) for corpus in _corpora(recipe)}
    training = planner.get("train", None).job
    assert training is not None, "finished tokens have a finished tokenizer"
    return plan_of_folders(recipe, folders, training.fingerprint)


def plan_of_folders(recipe: Recipe, folders: Mapping[str, str], tokenizer: str) -> LoadPlan:
    """Plan by a recipe's keys over token datasets that lie elsewhere, by corpus.

    Raises ValueError where one cannot be trained from, or has codes of another tokenizer.
    """
    load = recipe.load
    corpora = _corpora(recipe)
    return LoadPlan(
        datasets=_open_datasets(load, [folders[corpus] for corpus in corpora]),
        tokenizer=tokenizer,
        weights=_weights(load, corpora),
        epochs=tuple(load.epochs.get(corpus, 0) for corpus in corpora) if load.epochs else None,
        seed=load.seed,
        shuffle=load.shuffle,
        shuffle_shards=load.shuffle_shards,
        heldout_fraction=recipe.heldout_fraction,
        with_captions=load.with_captions,
        on_damage=load.on_damage,
        damage_ledger=Path(load.damage_ledger) if load.damage_ledger else None,
    )


def _corpora(recipe: Recipe) -> tuple[str, ...]:
    return recipe.load.corpora or recipe.training_corpora


def _token_folder(planner: Planner, corpus: str) -> str:
    planned = planner.get("pretokenize", corpus)
    if planned.job is None or planned.manifest is None:
        raise UserError(f"the tokens of {corpus} are unfinished: run `dualtoken run` first")
    return planned.job.folder


def _open_datasets(load: LoadConfig, folders: Sequence[str]) -> tuple[TokenDataset, ...]:
    """Open datasets that share one cache."""
    cache = None
    if load.cache:
        cache = ShardCache(Path(load.cache), int(load.cache_gb * 1e9))
    return tuple(
        TokenDataset(folder, streams=load.streams, check=load.check, cache=cache) for folder in folders
    )


def _weights(load: LoadConfig, corpora: Sequence[str]) -> dict[int, list[float]] | None:
    """Return the schedule with a weight for each corpus, in their order."""
    if not load.weights:
        return None
    schedule: dict[int, list[float]] = {}
    for first_sample, shares in load.weights.items():
        schedule[first_sample] = [shares.get(corpus, 0) for corpus in corpora]
    return schedule

"""The catalogue of stages: the declaration of each, in the order that a run takes them.

A further stage is declared by `declare`, in a module that `DUALTOKEN_STAGES` names where its stages are to
be known to the commands and to submitted jobs. Imports neither torch nor Ray.
"""

import importlib
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.corpora import AnySource, ScenesSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.resources import (
    encoding_worker,
    examining_worker,
    inference_worker,
    mllm_training,
    scoring_worker,
    teacher_training,
    tokenizer_training,
)
from dualtoken.pipelines.config.target_bytes import target_bytes
from dualtoken.pipelines.core.stage import Engine, Unit, input_name
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.folder_told import finish_folder
from dualtoken.pipelines.images.sources import source_identity
from dualtoken.pipelines.runtime.stage import (
    Budget,
    Inputs,
    Manifests,
    SharedFiles,
    Stage,
    single_unit,
    source_units,
    units_of,
)
from dualtoken.pipelines.runtime.stage_settings import (
    caption_source,
    mllm_settings,
    score_settings,
    teacher_settings,
    token_settings,
    train_settings,
)
from dualtoken.pipelines.tokens.facts import CAPTIONS_OF
from dualtoken.pipelines.tokens.finish import finish_tokens
from dualtoken.pipelines.tokens.shared_captions import require_caption_source, require_same_samples

MODULES_VARIABLE = "DUALTOKEN_STAGES"
"""Environment variable with modules that declare further stages, separated by commas."""

_STAGES: dict[str, Stage] = {}


def declare(stage: Stage) -> Stage:
    """Add a stage to the end of the catalogue; raises ValueError for a name that is taken."""
    if stage.name in _STAGES:
        raise ValueError(f"the stage {stage.name} is declared already")
    _STAGES[stage.name] = stage
    return stage


@cache
def _import_further_modules() -> None:
    """Import the modules that `DUALTOKEN_STAGES` names, at the first use of the catalogue."""
    for module in further_modules():
        _import_module(module)


def further_modules() -> list[str]:
    """Return the modules that `DUALTOKEN_STAGES` names."""
    named = os.environ.get(MODULES_VARIABLE, "").split(",")
    return [module.strip() for module in named if module.strip()]


def _import_module(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{MODULES_VARIABLE}={module} cannot be imported: {error}") from error


def all_stages() -> list[Stage]:
    """Return the stages in the order that a run takes them; those that read all others come last."""
    _import_further_modules()
    return sorted(_STAGES.values(), key=lambda stage: stage.reads_all)


def get_stage(name: str) -> Stage:
    """Return a stage by name; raises `UserError` for one that is not declared."""
    _import_further_modules()
    if name not in _STAGES:
        known = ", ".join(stage.name for stage in all_stages())
        raise UserError(f"no stage {name} is declared ({known}): name its module in {MODULES_VARIABLE}")
    return _STAGES[name]


def position(name: str) -> int:
    """Return a stage's place in the order that a run takes them."""
    return all_stages().index(get_stage(name))


def commands() -> dict[str, list[Stage]]:
    """Return what each stage's command runs: the stage itself, after those that its command also runs."""
    found: dict[str, list[Stage]] = {}
    for stage in all_stages():
        found[stage.name] = [*map(get_stage, stage.also_runs), stage]
    return found


def _source(recipe: Recipe, corpus: str | None) -> AnySource:
    assert corpus is not None
    return recipe.corpora[corpus].source


def _scenes_corpora(recipe: Recipe) -> list[str]:
    return [name for name in recipe.corpora if isinstance(_source(recipe, name), ScenesSource)]


def _scenes_settings(recipe: Recipe, corpus: str | None) -> dict[str, Any]:
    source = _source(recipe, corpus).identity()
    return {"source": source, "rows_per_shard": recipe.download.rows_per_shard}


def _units_of_source(recipe: Recipe, corpus: str | None, _: Manifests) -> list[Unit]:
    return source_units(recipe, corpus)


def _download_reads(recipe: Recipe, corpus: str | None) -> Inputs:
    if isinstance(_source(recipe, corpus), ScenesSource):
        return [("scenes", corpus)]
    return []


def _download_settings(recipe: Recipe, corpus: str | None) -> dict[str, Any]:
    return {"source": source_identity(recipe, corpus or ""), "download": recipe.download.identity()}


def _image_bytes(recipe: Recipe) -> float:
    bytes_per_pixel = {"png": 2.0, "jpg": 0.4, "webp": 0.25}[recipe.download.encode_format]
    return recipe.download.image_size**2 * bytes_per_pixel


def _of_training_corpora(recipe: Recipe, *names: str) -> Inputs:
    return [(name, corpus) for corpus in recipe.training_corpora for name in names]


def _teacher_reads(recipe: Recipe, _: str | None) -> Inputs:
    if recipe.teacher.kind == "train":
        return _of_training_corpora(recipe, "download")
    return []


def _teacher_engine(recipe: Recipe) -> Engine:
    if recipe.teacher.kind == "train":
        return "ray_train"
    return "map"


def _whole_corpus(_: Recipe, corpus: str | None, manifests: Manifests) -> list[Unit]:
    scored = manifests[input_name("score", corpus)]
    return [Unit("all", sum(scored.units.values()))]


def _expected_whole_corpus(recipe: Recipe, corpus: str | None) -> list[Unit]:
    return [Unit("all", sum(unit.rows for unit in source_units(recipe, corpus)))]


def _filter_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    return {"rules": [rule.identity() for rule in recipe.filter.rules]}


def _target_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    tokenizer = recipe.tokenizer
    return {
        **recipe.targets.identity(),
        "block": tokenizer.semantic_block,
        "image_size": tokenizer.image_size,
    }


def _target_corpora(recipe: Recipe) -> list[str]:
    return [] if recipe.targets.stored is None else list(recipe.corpora)


def _target_bytes(recipe: Recipe) -> float:
    stored = recipe.targets.stored
    if stored is None:
        return 0
    return target_bytes(recipe.tokenizer, stored)


def _target_budget(recipe: Recipe) -> Budget | None:
    if not recipe.targets.dense:
        return None
    fix = "or set targets.dense=false, and training runs the teacher itself"
    if recipe.targets.mode is not None:
        smaller = "dense_int8 for half of it, or " if recipe.targets.mode == "dense_float16" else ""
        fix = f"or set targets.mode={smaller}online, and training runs the teacher itself"
    return Budget(recipe.targets.dense_budget_gb, "targets.dense_budget_gb", fix)


def _train_reads(recipe: Recipe, _: str | None) -> Inputs:
    if recipe.targets.stored is None:
        return [*_of_training_corpora(recipe, "download", "filter"), ("teacher", None)]
    return [*_of_training_corpora(recipe, "download", "filter", "targets"), ("teacher", None)]


def _validation_of_teacher(recipe: Recipe, _: str | None) -> Inputs:
    if recipe.teacher.kind != "train" or not recipe.train.validate_every:
        return []
    return [("download", corpus) for corpus in recipe.heldout_corpora]


def _validation_of_tokenizer(recipe: Recipe, _: str | None) -> Inputs:
    if not recipe.train.validate_every:
        return []
    stages = ["download", "filter"] if recipe.targets.stored is None else ["download", "filter", "targets"]
    return [(name, corpus) for corpus in recipe.heldout_corpora for name in stages]


def _shown_by_mllm(recipe: Recipe, _: str | None) -> Inputs:
    if recipe.mllm is None or not recipe.mllm.log_images_every:
        return []
    return [("pretokenize", corpus) for corpus in recipe.heldout_corpora]


def _token_bytes(recipe: Recipe) -> float:
    config = recipe.tokenizer
    codes = config.grid_size**2 * config.pixel.depth * 2
    return (codes * 2 + 16) * recipe.pretokenize.num_variants


def _require_same_crops(folder: Store, corpus: str | None, settings: Mapping[str, Any]) -> None:
    require_caption_source(folder, corpus, settings.get("crops"))


def _every_other_stage(recipe: Recipe, _: str | None) -> Inputs:
    others = [stage for stage in all_stages() if not stage.reads_all]
    # Those that run once come first.
    reads: Inputs = []
    for stage in sorted(others, key=lambda stage: stage.per_corpus):
        reads += [(stage.name, corpus) for corpus in stage.runs_on(recipe)]
    return reads


def _examine_reads(recipe: Recipe, _: str | None) -> Inputs:
    """Return the model, the tokens of all corpora, and the held-out images.

    The captions of training corpora say which words the model can know.
    """
    corpora = dict.fromkeys((*recipe.training_corpora, *recipe.heldout_corpora))
    return [
        ("mllm", None),
        *(("pretokenize", corpus) for corpus in corpora),
        *(("download", corpus) for corpus in recipe.heldout_corpora),
    ]


def _measure_reads(recipe: Recipe, _: str | None) -> Inputs:
    assert recipe.measure is not None
    if recipe.measure.sets:
        return [("train", None), ("teacher", None)]
    return [
        ("train", None),
        ("teacher", None),
        *(("download", corpus) for corpus in recipe.heldout_corpora),
    ]


def _measure_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    assert recipe.measure is not None
    return {"measure": recipe.measure.identity()}


def _report_settings(recipe: Recipe, _: str | None) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "report": recipe.report.identity(),
        "heldout": recipe.heldout.identity(),
    }


declare(
    Stage(
        name="scenes",
        version=1,
        folder="{corpus}/scenes",
        worker="dualtoken.pipelines.images.scenes:Worker",
        reads=lambda _recipe, _corpus: [],
        settings=_scenes_settings,
        recipe_keys={"source": "corpora.{corpus}.source", "rows_per_shard": "download.rows_per_shard"},
        units=_units_of_source,
        corpora=_scenes_corpora,
        row_bytes=lambda _recipe: 9000,
        shown_corpora=lambda _recipe, _corpus: (),  # a source stays as it is
        help="Make the embedded corpus of synthetic scenes, for recipes that name it.",
    )
)
declare(
    Stage(
        name="download",
        version=2,
        folder="{corpus}/shards",
        worker="dualtoken.pipelines.images.download:Worker",
        reads=_download_reads,
        settings=_download_settings,
        recipe_keys={
            "source": "corpora.{corpus}.source",
            "source.content": "corpora.{corpus}.source.table (its content)",
            "source.files": "corpora.{corpus}.source.folder (its content)",
            "source.shards": "corpora.{corpus}.source.folder (its content)",
        },
        units=_units_of_source,
        row_bytes=_image_bytes,
        rewrite="dualtoken.pipelines.maintenance.forget_rewrite:image_shards",
        names_folders=("corpora.{corpus}.source.folder",),
        passed_on="Downloaded",
        finish=finish_folder,
        help="URL tables and folders to image shards, with a ledger row per input row.",
    )
)
declare(
    Stage(
        name="teacher",
        version=1,
        folder="models/teacher",
        worker="dualtoken.pipelines.training.teacher:Worker",
        reads=_teacher_reads,
        also_reads=_validation_of_teacher,
        settings=teacher_settings,
        recipe_keys={
            "gpu": "train.use_gpu",
            "activation": "tokenizer.tower.activation",
            "teacher.files": "teacher.folder (its content)",
        },
        units=single_unit("model"),
        engine=_teacher_engine,
        resources=teacher_training,
        per_corpus=False,
        names_folders=("teacher.folder",),
        trains="Teacher",
        help="Train, fetch or adopt the language-aligned teacher.",
    )
)
declare(
    Stage(
        name="score",
        version=1,
        folder="{corpus}/scores",
        worker="dualtoken.pipelines.curation.score:Worker",
        reads=lambda _recipe, corpus: [("download", corpus), ("teacher", None)],
        settings=score_settings,
        recipe_keys={"batch_size": "filter.batch_size", "precision": "filter.precision"},
        units=units_of("download"),
        resources=scoring_worker,
        row_bytes=lambda _recipe: 90,
        rewrite="dualtoken.pipelines.maintenance.forget_rewrite:parquet_rows",
        passed_on="Decodable",
        help="Score every sample: its size, its caption's length, and how well the two agree.",
    )
)
declare(
    Stage(
        name="filter",
        version=1,
        folder="{corpus}/decision",
        worker="dualtoken.pipelines.curation.filter:Worker",
        also_runs=("score",),
        reads=lambda _recipe, corpus: [("score", corpus)],
        settings=_filter_settings,
        recipe_keys={"rules": "filter.rules"},
        units=_whole_corpus,
        expected_units=_expected_whole_corpus,
        row_bytes=lambda _recipe: 30,
        rewrite="dualtoken.pipelines.maintenance.forget_rewrite:decisions",
        passed_on="Kept",
        help="Decide which samples to keep, by the recipe's rules; scores them first.",
    )
)
declare(
    Stage(
        name="targets",
        version=1,
        folder="{corpus}/targets",
        worker="dualtoken.pipelines.training.targets:Worker",
        reads=lambda _recipe, corpus: [("download", corpus), ("filter", corpus), ("teacher", None)],
        settings=_target_settings,
        recipe_keys={
            "dense": "targets.dense",
            "mode": "targets.mode",
            "batch_size": "targets.batch_size",
            "precision": "targets.precision",
            "block": "tokenizer.semantic_block",
            "image_size": "tokenizer.image_size",
        },
        units=units_of("filter"),
        corpora=_target_corpora,
        resources=scoring_worker,
        row_bytes=_target_bytes,
        budget=_target_budget,
        rewrite="dualtoken.pipelines.maintenance.forget_rewrite:targets",
        help="Compute what the teacher says of each kept sample.",
    )
)
declare(
    Stage(
        name="train",
        version=1,
        folder="models/tokenizer",
        worker="dualtoken.pipelines.training.train:Worker",
        engine=lambda _recipe: "ray_train",
        reads=_train_reads,
        also_reads=_validation_of_tokenizer,
        settings=train_settings,
        recipe_keys={
            "perceptual": "train.perceptual (its files' content)",
            "start_from": "train.start_from (its content)",
        },
        units=single_unit("model"),
        resources=tokenizer_training,
        per_corpus=False,
        names_folders=("train.start_from",),
        trains="Tokenizer",
        help="Train the dual tokenizer.",
    )
)
declare(
    Stage(
        name="pretokenize",
        version=1,
        folder="{corpus}/tokens",
        worker="dualtoken.pipelines.tokens.pretokenize:Worker",
        reads=lambda _recipe, corpus: [
            ("download", corpus),
            ("score", corpus),
            ("filter", corpus),
            ("train", None),
        ],
        settings=token_settings,
        recipe_keys={
            "crops": "pretokenize.crops",
            "precision": "pretokenize.precision",
            CAPTIONS_OF: "pretokenize.captions_of.{corpus}",
        },
        shared_files=SharedFiles(caption_source, _require_same_crops, require_same_samples),
        units=units_of("filter"),
        resources=encoding_worker,
        row_bytes=_token_bytes,
        finish=finish_tokens,
        rewrite="dualtoken.pipelines.maintenance.forget_rewrite:token_shards",
        deep_verify="dualtoken.pipelines.maintenance.deep_verify:check_token_dataset",
        passed_on="Tokens",
        help="Turn corpora into token shards, index and manifest.",
    )
)
declare(
    Stage(
        name="mllm",
        version=3,
        folder="models/mllm",
        worker="dualtoken.pipelines.training.mllm:Worker",
        engine=lambda _recipe: "ray_train",
        reads=lambda recipe, _corpus: [*_of_training_corpora(recipe, "pretokenize"), ("train", None)],
        also_reads=_shown_by_mllm,
        settings=mllm_settings,
        recipe_keys={"start_from": "mllm.start_from (its content)"},
        only_with="mllm",
        units=single_unit("model"),
        resources=mllm_training,
        training_key="mllm",
        per_corpus=False,
        names_folders=("mllm.start_from",),
        trains="MLLM",
        help="Train the unified model on a run's tokens.",
    )
)
declare(
    Stage(
        name="examine",
        version=2,
        folder="models/examination",
        worker="dualtoken.pipelines.evaluation.examine:Worker",
        reads=_examine_reads,
        settings=lambda recipe, _corpus: {"examine": recipe.examine.identity()},
        only_with="mllm",
        units=single_unit("examination"),
        resources=examining_worker,
        per_corpus=False,
        shown_corpora=lambda recipe, _corpus: recipe.heldout_corpora,
        help="Ask the unified model about held-out images, and let it describe and draw them.",
    )
)
declare(
    Stage(
        name="measure",
        version=1,
        folder="models/measurement",
        worker="dualtoken.pipelines.evaluation.measure:Worker",
        reads=_measure_reads,
        settings=_measure_settings,
        only_with="measure",
        units=single_unit("measurement"),
        resources=inference_worker,
        per_corpus=False,
        shown_corpora=lambda recipe, _corpus: recipe.heldout_corpora,
        help="Measure the tokenizer by the protocols of the recipe's key measure.",
    )
)
declare(
    Stage(
        name="report",
        version=6,
        folder="reports",
        worker="dualtoken.pipelines.evaluation.report:Worker",
        reads=_every_other_stage,
        reads_all=True,
        settings=_report_settings,
        units=single_unit("report"),
        resources=inference_worker,
        per_corpus=False,
        shown_corpora=lambda recipe, _corpus: tuple(recipe.corpora),
        page="report.html",
        help="Make one HTML page of the whole run.",
    )
)

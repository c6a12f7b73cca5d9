"""The catalogue of steps: what each reads, where it writes, and which of the recipe's fields decide its output.

A command (`dualtoken filter`) runs one or two steps; a step runs once per corpus or once per recipe.
Imports neither torch nor ray, so that `plan` and `status` answer at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dualtoken.pipelines.config.corpora import ScenesSource, ShardsSource, UrlsSource
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.core.stage import Unit
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.url_table import count_source_rows, source_identity
from dualtoken.pipelines.runtime.step_settings import (
    lender,
    score_settings,
    teacher_settings,
    token_settings,
    train_settings,
)

Manifests = Mapping[str, Manifest]
"""Of a step's inputs, by input name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One kind of work."""

    name: str
    version: int
    """Raised when the same inputs give other bytes than before."""
    folder: str
    """Below the recipe's root; the fingerprint is added. `{corpus}` stands for the corpus."""
    reads: Callable[[Recipe, str | None], list[tuple[str, str | None]]]
    """The steps, and their corpora, that must be finished."""
    settings: Callable[[Recipe, str | None], dict[str, Any]]
    """What decides the output beside the inputs; JSON values."""
    units: Callable[[Recipe, str | None, Mapping[str, str], Manifests], list[Unit]]
    """From the recipe, the corpus, and the inputs' folders and manifests."""
    row_bytes: Callable[[Recipe], float] = lambda _recipe: 0.0
    """Bytes expected per sample that goes on."""
    shares_captions: Callable[[Recipe, str | None], str | None] = lambda _recipe, _corpus: None
    """The fingerprint of a finished folder of the same step that has some of the files, in place of this one's."""
    per_corpus: bool = True

    def bound(self, recipe: Recipe, corpus: str | None) -> list[Unit]:
        """Return the units as if no sample were lost: what a plan can say before the inputs are finished."""
        if corpus is None:
            return self.units(recipe, None, {}, {})
        scenes = isinstance(recipe.corpora[corpus].source, ScenesSource)
        units = (_scenes_units if scenes else _source_units)(recipe, corpus, {}, {})
        return [Unit("all", sum(unit.rows for unit in units))] if self.name == "filter" else units

    def corpora(self, recipe: Recipe) -> list[str | None]:
        """Return what the step runs on: corpora, or once on none."""
        if not self.per_corpus:
            return [None]
        if self.name == "scenes":
            return [
                name for name, corpus in recipe.corpora.items() if isinstance(corpus.source, ScenesSource)
            ]
        return list(recipe.corpora)


def input_name(step: str, corpus: str | None) -> str:
    """Name an input: `download/scenes-train`, or `teacher`."""
    return f"{step}/{corpus}" if corpus else step


def _one(name: str) -> Callable[..., list[Unit]]:
    return lambda *_: [Unit(name, 0)]


def _download_reads(recipe: Recipe, corpus: str | None) -> list[tuple[str, str | None]]:
    return [("scenes", corpus)] if isinstance(_source(recipe, corpus), ScenesSource) else []


def _source(recipe: Recipe, corpus: str | None) -> ScenesSource | UrlsSource | ShardsSource:
    assert corpus is not None
    return recipe.corpora[corpus].source


def _source_units(
    recipe: Recipe, corpus: str | None, _folders: Mapping[str, str], _: Manifests
) -> list[Unit]:
    assert corpus is not None
    counts = count_source_rows(recipe, corpus)
    if not sum(counts):
        raise UserError(f"corpora.{corpus}.source has no rows: give it a table that has some")
    return [Unit(f"{index:05d}", rows) for index, rows in enumerate(counts)]


def _scenes_units(
    recipe: Recipe, corpus: str | None, _folders: Mapping[str, str], _: Manifests
) -> list[Unit]:
    source, rows = _source(recipe, corpus), recipe.download.rows_per_shard
    assert isinstance(source, ScenesSource)
    return [
        Unit(f"{first // rows:05d}", min(rows, source.num_images - first))
        for first in range(0, source.num_images, rows)
    ]


def _units_of(step: str) -> Callable[..., list[Unit]]:
    def units(
        _recipe: Recipe, corpus: str | None, _folders: Mapping[str, str], manifests: Manifests
    ) -> list[Unit]:
        return [Unit(unit, rows) for unit, rows in manifests[input_name(step, corpus)].units.items()]

    return units


def _decision_unit(
    _recipe: Recipe, corpus: str | None, _folders: Mapping[str, str], manifests: Manifests
) -> list[Unit]:
    return [Unit("all", sum(manifests[input_name("score", corpus)].units.values()))]


def _training_inputs(*steps: str) -> Callable[[Recipe, str | None], list[tuple[str, str | None]]]:
    return lambda recipe, _: [(step, corpus) for corpus in recipe.training_corpora for step in steps]


def _teacher_reads(recipe: Recipe, _: str | None) -> list[tuple[str, str | None]]:
    return _training_inputs("download")(recipe, None) if recipe.teacher.kind == "train" else []


def _target_bytes(recipe: Recipe) -> float:
    config = recipe.tokenizer
    dense = config.grid_size**2 * config.tower.width * 2 if recipe.targets.dense else 0
    return dense + 3 * config.tower.width * 4 + 20


def _token_bytes(recipe: Recipe) -> float:
    config = recipe.tokenizer
    return (config.grid_size**2 * config.pixel.depth * 2 * 2 + 16) * recipe.pretokenize.num_variants


def _image_bytes(recipe: Recipe) -> float:
    return (
        recipe.download.image_size**2 * {"png": 2.0, "jpg": 0.4, "webp": 0.25}[recipe.download.encode_format]
    )


def _everything(recipe: Recipe, _: str | None) -> list[tuple[str, str | None]]:
    once: list[tuple[str, str | None]] = [("teacher", None), ("train", None)]
    steps = ("scenes", "download", "score", "filter", "targets", "pretokenize")
    return once + [(step, corpus) for step in steps for corpus in STEPS[step].corpora(recipe)]


STEPS = {
    step.name: step
    for step in (
        Step(
            name="scenes",
            version=1,
            folder="{corpus}/scenes",
            reads=lambda _recipe, _corpus: [],
            settings=lambda recipe, corpus: {
                "source": _source(recipe, corpus).identity(),
                "rows_per_shard": recipe.download.rows_per_shard,
            },
            units=_scenes_units,
            row_bytes=lambda _recipe: 9000,
        ),
        Step(
            name="download",
            version=1,
            folder="{corpus}/shards",
            reads=_download_reads,
            settings=lambda recipe, corpus: {
                "source": source_identity(recipe, corpus or ""),
                "download": recipe.download.identity(),
            },
            units=_source_units,
            row_bytes=_image_bytes,
        ),
        Step(
            name="teacher",
            version=1,
            folder="models/teacher",
            reads=_teacher_reads,
            settings=teacher_settings,
            units=_one("model"),
            per_corpus=False,
        ),
        Step(
            name="score",
            version=1,
            folder="{corpus}/scores",
            reads=lambda _recipe, corpus: [("download", corpus), ("teacher", None)],
            settings=score_settings,
            units=_units_of("download"),
            row_bytes=lambda _recipe: 90,
        ),
        Step(
            name="filter",
            version=1,
            folder="{corpus}/decision",
            reads=lambda _recipe, corpus: [("score", corpus)],
            settings=lambda recipe, _corpus: {"rules": [rule.identity() for rule in recipe.filter.rules]},
            units=_decision_unit,
            row_bytes=lambda _recipe: 30,
        ),
        Step(
            name="targets",
            version=1,
            folder="{corpus}/targets",
            reads=lambda _recipe, corpus: [("download", corpus), ("filter", corpus), ("teacher", None)],
            settings=lambda recipe, _corpus: {
                **recipe.targets.identity(),
                "block": recipe.tokenizer.semantic_block,
                "image_size": recipe.tokenizer.image_size,
            },
            units=_units_of("filter"),
            row_bytes=_target_bytes,
        ),
        Step(
            name="train",
            version=1,
            folder="models/tokenizer",
            reads=lambda recipe, _: [
                *_training_inputs("download", "filter", "targets")(recipe, None),
                ("teacher", None),
            ],
            settings=train_settings,
            units=_one("model"),
            per_corpus=False,
        ),
        Step(
            name="pretokenize",
            version=1,
            folder="{corpus}/tokens",
            reads=lambda _recipe, corpus: [
                ("download", corpus),
                ("score", corpus),
                ("filter", corpus),
                ("train", None),
            ],
            settings=token_settings,
            shares_captions=lender,
            units=_units_of("filter"),
            row_bytes=_token_bytes,
        ),
        Step(
            name="report",
            version=1,
            folder="reports",
            reads=_everything,
            settings=lambda recipe, _: {
                "name": recipe.name,
                "report": recipe.report.identity(),
                "heldout": recipe.heldout.identity(),
            },
            units=_one("report"),
            per_corpus=False,
        ),
    )
}

COMMANDS: dict[str, tuple[str, ...]] = {
    "scenes": ("scenes",),
    "download": ("download",),
    "teacher": ("teacher",),
    "filter": ("score", "filter"),
    "targets": ("targets",),
    "train": ("train",),
    "pretokenize": ("pretokenize",),
    "report": ("report",),
}
"""The steps of each command, in the order a run takes them."""

"""Declares a stage: what it reads, what decides its output, where and how it runs.

Everything that serves stages (plan, run, submit, status, verify, forget, gc, explain, Dagster, the report)
reads this declaration and branches on no stage's name. Imports neither torch nor Ray, so that `plan` and
`status` answer at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dualtoken.infra.source_code import code_hash
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.resources import Resources, cpu_worker
from dualtoken.pipelines.core.commit import StageContent
from dualtoken.pipelines.core.receipts import Manifest
from dualtoken.pipelines.core.stage import Engine, StageExtras, StageJob, Unit, input_name
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.sources import count_source_rows

_COMMIT_MODULE = "dualtoken.pipelines.core.commit"
_TRAINING_MODULE = "dualtoken.infra.ray_train"

Inputs = list[tuple[str, str | None]]
"""Stages, each with the corpus that it ran on, or None where it runs once per recipe."""
Manifests = Mapping[str, Manifest]
"""Manifests of a stage's inputs, by input name."""
UnitsOf = Callable[[Recipe, str | None, Manifests], list[Unit]]
"""Units of a stage on a corpus, from the recipe and the inputs' manifests."""


class Budget(NamedTuple):
    """A limit on what a stage may write, checked before it runs."""

    gigabytes: float
    key: str
    """The key that sets it, such as `targets.dense_budget_gb`."""
    fix: str
    """Advice for keeping within the limit instead of raising it."""


class SharedFiles(NamedTuple):
    """How a stage may share the files of a finished folder of its own kind instead of writing them again."""

    fingerprint: Callable[[Recipe, str | None], str | None]
    """The folder that a recipe names for a corpus, or None."""
    require: Callable[[Store, str | None, Mapping[str, Any]], None]
    """Raises `UserError` unless that folder fits the corpus and the settings."""
    require_units: Callable[[Store, str | None, list[Unit]], None]
    """Raises `UserError` unless that folder was made from these units."""


def every_corpus(recipe: Recipe) -> list[str]:
    """Return all corpora of a recipe."""
    return list(recipe.corpora)


def source_units(recipe: Recipe, corpus: str | None) -> list[Unit]:
    """Return a unit for each shard of a corpus's source, as if no sample were lost."""
    assert corpus is not None
    counts = count_source_rows(recipe, corpus)
    if not sum(counts):
        raise UserError(f"corpora.{corpus}.source has no rows: give it a table that has some")
    return [Unit(f"{index:05d}", rows) for index, rows in enumerate(counts)]


def units_of(stage: str) -> UnitsOf:
    """Return a rule that gives one unit per shard of an input, with the samples that went on."""

    def units(_: Recipe, corpus: str | None, manifests: Manifests) -> list[Unit]:
        shards = manifests[input_name(stage, corpus)].units
        return [Unit(shard, rows) for shard, rows in shards.items()]

    return units


def single_unit(name: str) -> UnitsOf:
    """Return a rule that gives one unit without samples, such as a training run."""

    def units(_recipe: Recipe, _corpus: str | None, _manifests: Manifests) -> list[Unit]:
        return [Unit(name, 0)]

    return units


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Declaration of a stage: what it reads, what decides its output, and how it runs.

    A stage with one unit per shard needs only the first seven fields and `help`:

        declare(
            Stage(
                name="brightness",
                version=1,
                folder="{corpus}/brightness",
                worker="my_stages.brightness:Worker",
                reads=lambda recipe, corpus: [("download", corpus), ("filter", corpus)],
                settings=lambda recipe, corpus: {},
                units=units_of("filter"),
                help="Measure each kept image's brightness.",
            )
        )
    """

    name: str
    version: int
    """Raised when the same inputs give other bytes than before."""
    folder: str
    """Folder below the recipe's root, to which the fingerprint is added; `{corpus}` stands for the corpus."""
    worker: str
    """The worker's class as `module:name`, imported in the process that runs it (`core.stage.Worker`)."""
    reads: Callable[[Recipe, str | None], Inputs]
    """Stages that must be finished before, and whose outputs decide this one's."""
    settings: Callable[[Recipe, str | None], dict[str, Any]]
    """JSON values that decide the output, beside the inputs."""
    units: UnitsOf
    help: str
    """One line on what the command does."""
    also_reads: Callable[[Recipe, str | None], Inputs] = lambda _recipe, _corpus: []
    """Further stages that must be finished before, and decide nothing of the output, such as held-out samples
    that a training is measured on."""
    recipe_keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of the recipe by those of `settings` that a recipe spells otherwise, for `explain`; `{corpus}`
    stands for the corpus."""
    also_runs: tuple[str, ...] = ()
    """Earlier stages that the stage's command runs too, where they are not done: those that nobody wants for
    themselves."""
    engine: Callable[[Recipe], Engine] = lambda _recipe: "map"
    """How a recipe's units are run on a cluster."""
    resources: Callable[[Recipe], Resources] = cpu_worker
    """Resources that the stage asks of a cluster."""
    per_corpus: bool = True
    """Whether the stage runs once on each corpus, or once per recipe."""
    corpora: Callable[[Recipe], list[str]] = every_corpus
    """Corpora that a stage that runs per corpus runs on."""
    only_with: str = ""
    """Key of the recipe without which there is no such stage in a run; empty: the stage is in every run."""
    expected_units: Callable[[Recipe, str | None], list[Unit]] = source_units
    """Units of a per-corpus stage as if no sample were lost: what a plan can say before the inputs are
    finished."""
    row_bytes: Callable[[Recipe], float] = lambda _recipe: 0.0
    """Bytes expected per sample that goes on."""
    budget: Callable[[Recipe], Budget | None] = lambda _recipe: None
    """Limit on the bytes expected."""
    shared_files: SharedFiles | None = None
    """Rule for sharing files of another folder of this stage; None: nothing is shared."""
    finish: Callable[[StageContent], StageExtras] | None = None
    """Writes what belongs to the stage as a whole, once every unit has its receipt."""
    shown_corpora: Callable[[Recipe, str | None], tuple[str, ...]] = lambda _recipe, corpus: (
        (corpus,) if corpus else ()
    )
    """Corpora whose samples the output shows, so that forgetting one concerns it; a trained model shows
    none."""
    rewrite: str = ""
    """Function by which `forget` takes samples out: `module:function`, returns a
    `maintenance.forget_rewrite.Rewriter` for a `StageRecord`. Empty: the whole folder is emptied if it
    shows such samples, and stays if it shows none."""
    deep_verify: str = ""
    """Checks of a folder's rows beyond checksums: `module:function`, a
    `maintenance.deep_verify.FolderCheck`. Empty: only ledgers are checked."""
    names_folders: tuple[str, ...] = ()
    """Keys of the recipe that name folders the stage reads beside its inputs, which `gc` keeps."""
    reads_all: bool = False
    """Whether the stage reads every other stage, and so comes last."""
    passed_on: str = ""
    """Label of the samples that the stage passes on, such as `Kept`: a row of the report's funnel."""
    trains: str = ""
    """Name of the model that the stage trains, such as `Tokenizer`: a plot of the report."""
    training_key: str = "train"
    """Key of the recipe with the settings of the workers and checkpoints of a stage that trains."""
    page: str = ""
    """File of the output that a run ends by naming."""

    def runs_on(self, recipe: Recipe) -> list[str | None]:
        """Return the corpora that the stage runs on, or [None] where it runs once per recipe."""
        if self.only_with and getattr(recipe, self.only_with) is None:
            return []
        if not self.per_corpus:
            return [None]
        return [*self.corpora(recipe)]

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that decide the output's bytes, with what they import."""
        modules = [self.worker.partition(":")[0], _COMMIT_MODULE]
        if self.trains:
            modules.append(_TRAINING_MODULE)
        if self.finish is not None:
            modules.append(self.finish.__module__)
        return tuple(modules)

    @property
    def code(self) -> str:
        """Hash of those modules' sources: other code may give other bytes under the same fingerprint."""
        return code_hash(*self.modules)

    def expected(self, recipe: Recipe, corpus: str | None) -> list[Unit]:
        """Return the units as if no sample were lost."""
        if self.per_corpus:
            return self.expected_units(recipe, corpus)
        return self.units(recipe, None, {})

    def job(
        self,
        corpus: str | None,
        recipe: Recipe,
        folder: str,
        fingerprint: str,
        inputs: Mapping[str, str],
        units: tuple[Unit, ...],
    ) -> StageJob:
        """Return the job that runs the stage on a corpus."""
        return StageJob(
            self.name,
            corpus,
            recipe,
            folder,
            fingerprint,
            inputs,
            units,
            worker=self.worker,
            resources=self.resources(recipe),
            engine=self.engine(recipe),
            training_key=self.training_key,
            shown_corpora=self.shown_corpora(recipe, corpus),
            code=self.code,
        )

"""Plans a recipe: each stage's units, its folder, what of it is done, and what it waits for."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.core.receipts import Manifest, done_units, fingerprint, read_manifest
from dualtoken.pipelines.core.stage import StageJob, Unit, input_name, label
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.stage import Stage, source_units
from dualtoken.pipelines.runtime.stages import all_stages, commands, get_stage, position


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage on a corpus, as far as it is known now."""

    stage: str
    corpus: str | None
    job: StageJob | None
    """None while an input is unfinished: its fingerprint is not known before."""
    identity: dict[str, object]
    waits_for: tuple["PlannedStage", ...]
    """Inputs that are not finished."""
    num_units: int
    """Units, or those expected while an input is unfinished: as if no sample were lost."""
    num_rows: int
    """Samples in, or expected at most."""
    done: frozenset[str]
    """Units that have a receipt."""
    manifest: Manifest | None
    output_bytes: float | None
    """Bytes written, or expected; None where nothing tells."""

    @property
    def label(self) -> str:
        """Name the stage and its corpus for people."""
        return label(self.stage, self.corpus)

    @property
    def units_to_do(self) -> tuple[Unit, ...]:
        """The units without a receipt."""
        if self.job is None:
            return ()
        return tuple(unit for unit in self.job.units if unit.id not in self.done)


def first_to_run(planned: Iterable[PlannedStage]) -> str:
    """Return the stage to run first where all these are wanted: one that waits for none itself."""
    ready: set[str] = set()
    for plan in planned:
        ready.add(first_to_run(plan.waits_for) if plan.waits_for else plan.stage)
    return min(ready, key=position)


class Planner:
    """Reads what is finished below a recipe's root, once: after anything has run, make a new one."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.root = Store(recipe.root)
        self._known: dict[str, PlannedStage] = {}

    def plan(self) -> Iterator[PlannedStage]:
        """Plan every stage in the order a run takes them."""
        for stage in all_stages():
            yield from self.on_corpora(stage.name)

    def on_corpora(self, name: str, corpora: Collection[str] | None = None) -> Iterator[PlannedStage]:
        """Plan one stage on each of its corpora, or on those of them that are named."""
        for corpus in get_stage(name).runs_on(self.recipe):
            if corpora is None or corpus is None or corpus in corpora:
                yield self.get(name, corpus)

    def command(self, name: str, corpora: Collection[str] | None = None) -> Iterator[PlannedStage]:
        """Plan a command's stages, likewise."""
        for stage in commands()[name]:
            yield from self.on_corpora(stage.name, corpora)

    def get(self, name: str, corpus: str | None) -> PlannedStage:
        """Plan one stage on one corpus, and what it needs, once."""
        key = input_name(name, corpus)
        if key not in self._known:
            self._known[key] = self._plan(get_stage(name), corpus)
        return self._known[key]

    def require_enough_rows(self) -> None:
        """Raise `UserError` where sources have too few rows to train a teacher, before any is downloaded."""
        teacher = self.recipe.teacher
        if not isinstance(teacher, TrainedTeacher):
            return
        rows = 0
        for corpus in self.recipe.training_corpora:
            rows += sum(unit.rows for unit in source_units(self.recipe, corpus))
        if rows < teacher.batch_size:
            corpora = ", ".join(f"corpora.{name}" for name in self.recipe.training_corpora)
            raise UserError(
                f"teacher.batch_size={teacher.batch_size} is over the {rows} rows of {corpora}: "
                "lower it, or give more rows"
            )

    def _plan(self, stage: Stage, corpus: str | None) -> PlannedStage:
        shared = self._shared_folder(stage, corpus)
        if shared and stage.shared_files:
            stage.shared_files.require(shared, corpus, stage.settings(self.recipe, corpus))
        inputs: dict[str, PlannedStage] = {}
        for name, input_corpus in stage.reads(self.recipe, corpus):
            inputs[input_name(name, input_corpus)] = self.get(name, input_corpus)
        beside: dict[str, PlannedStage] = {}
        for name, input_corpus in stage.also_reads(self.recipe, corpus):
            beside[input_name(name, input_corpus)] = self.get(name, input_corpus)
        needed = {**inputs, **beside}
        unfinished = tuple(planned for planned in needed.values() if planned.manifest is None)
        if unfinished:
            return self._expected(stage, corpus, unfinished)

        manifests: dict[str, Manifest] = {}
        folders: dict[str, str] = {}
        for name, planned in inputs.items():
            assert planned.manifest is not None
            manifests[name] = planned.manifest
        for name, planned in needed.items():
            assert planned.job is not None, "a finished stage has a job"
            folders[name] = planned.job.folder
        identity = {
            "stage": stage.name,
            "version": stage.version,
            "corpus": corpus,
            "settings": stage.settings(self.recipe, corpus),
            "inputs": {name: manifest.lineage_hash for name, manifest in manifests.items()},
        }
        units = stage.units(self.recipe, corpus, manifests)
        if shared and stage.shared_files:
            stage.shared_files.require_units(shared, corpus, units)
            folders[input_name(stage.name, corpus)] = shared.url
        name = fingerprint(identity)
        folder = join(self.root.url, stage.folder.format(corpus=corpus), name)
        job = stage.job(corpus, self.recipe, folder, name, folders, tuple(units))
        return self._known_so_far(stage, job, identity)

    def _expected(
        self, stage: Stage, corpus: str | None, unfinished: tuple[PlannedStage, ...]
    ) -> PlannedStage:
        """Return upper bounds for a stage whose inputs are unfinished, as if no sample were lost."""
        units = stage.expected(self.recipe, corpus)
        rows = sum(unit.rows for unit in units)
        size = stage.row_bytes(self.recipe) * rows
        return PlannedStage(
            stage=stage.name,
            corpus=corpus,
            job=None,
            identity={},
            waits_for=unfinished,
            num_units=len(units),
            num_rows=rows,
            done=frozenset(),
            manifest=None,
            output_bytes=size or None,
        )

    def _known_so_far(self, stage: Stage, job: StageJob, identity: dict[str, object]) -> PlannedStage:
        """Return what a stage's own folder tells of it."""
        store = job.store()
        manifest = read_manifest(store)
        rows = sum(unit.rows for unit in job.units)
        size: float | None
        if manifest:
            done = frozenset(unit.id for unit in job.units)
            size = manifest.bytes
        else:
            done = frozenset(done_units(store))
            size = stage.row_bytes(self.recipe) * rows or None
        return PlannedStage(
            stage=stage.name,
            corpus=job.corpus,
            job=job,
            identity=identity,
            waits_for=(),
            num_units=len(job.units),
            num_rows=rows,
            done=done,
            manifest=manifest,
            output_bytes=size,
        )

    def _shared_folder(self, stage: Stage, corpus: str | None) -> Store | None:
        """Return the folder of this stage whose files the recipe shares."""
        if stage.shared_files is None:
            return None
        name = stage.shared_files.fingerprint(self.recipe, corpus)
        if name is None:
            return None
        return self.root.at(join(stage.folder.format(corpus=corpus), name))

"""Plans a recipe: which units of which step, into which folder, which of them are done, and what each waits for."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from dualtoken.infra.storage import Store, join
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.core.receipts import Manifest, done_units, fingerprint, read_manifest
from dualtoken.pipelines.core.stage import StageJob, Unit
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.steps import COMMANDS, STEPS, Step, input_name
from dualtoken.pipelines.tokens.shared_captions import require_caption_source, require_same_samples


@dataclass(frozen=True, slots=True)
class Planned:
    """A step on a corpus, as far as it is known now."""

    step: str
    corpus: str | None
    job: StageJob | None
    """None while an input is unfinished: its fingerprint is not known before."""
    identity: dict[str, object]
    waits_for: tuple[str, ...]
    num_units: int
    """Expected while an input is unfinished: as if no sample were lost."""
    num_rows: int
    """Samples in, or expected at most."""
    done: frozenset[str]
    """Units that have a receipt."""
    manifest: Manifest | None
    output_bytes: float | None
    """Written, or expected; None where nothing tells."""

    @property
    def label(self) -> str:
        """Name the step for people."""
        return f"{self.step} {self.corpus}" if self.corpus else self.step

    @property
    def units_to_do(self) -> tuple[Unit, ...]:
        """The units without a receipt."""
        return tuple(unit for unit in self.job.units if unit.id not in self.done) if self.job else ()


class Planner:
    """Reads what is finished below a recipe's root; made anew after anything has run."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.root = Store(recipe.root)
        self._known: dict[str, Planned] = {}

    def plan(self) -> Iterator[Planned]:
        """Plan every step in the order a run takes them."""
        for name in COMMANDS:
            yield from self.command(name)

    def step(self, name: str, corpora: Collection[str] | None = None) -> Iterator[Planned]:
        """Plan one step on each of its corpora, or on those of them that are named."""
        for corpus in STEPS[name].corpora(self.recipe):
            if corpora is None or corpus is None or corpus in corpora:
                yield self.one(name, corpus)

    def command(self, name: str, corpora: Collection[str] | None = None) -> Iterator[Planned]:
        """Plan a command's steps, likewise."""
        for step in COMMANDS[name]:
            yield from self.step(step, corpora)

    def one(self, name: str, corpus: str | None) -> Planned:
        """Plan one step on one corpus, and what it needs, once."""
        key = input_name(name, corpus)
        if key not in self._known:
            self._known[key] = self._plan(STEPS[name], corpus)
        return self._known[key]

    def _plan(self, step: Step, corpus: str | None) -> Planned:
        if lender := self._lender(step, corpus):
            require_caption_source(lender, corpus, step.settings(self.recipe, corpus).get("crops"))
        inputs = {input_name(name, of): self.one(name, of) for name, of in step.reads(self.recipe, corpus)}
        if waits := tuple(planned.label for planned in inputs.values() if planned.manifest is None):
            bound = step.bound(self.recipe, corpus)
            rows = sum(unit.rows for unit in bound)
            size = step.row_bytes(self.recipe) * rows or None
            return Planned(step.name, corpus, None, {}, waits, len(bound), rows, frozenset(), None, size)
        manifests = {name: planned.manifest for name, planned in inputs.items() if planned.manifest}
        folders = {name: planned.job.folder for name, planned in inputs.items() if planned.job}
        identity = {
            "stage": step.name,
            "version": step.version,
            "corpus": corpus,
            "settings": step.settings(self.recipe, corpus),
            "inputs": {name: manifest.lineage_hash for name, manifest in manifests.items()},
        }
        print_ = fingerprint(identity)
        folder = join(self.root.url, step.folder.format(corpus=corpus), print_)
        store = Store(folder)
        manifest = read_manifest(store)
        units = step.units(self.recipe, corpus, folders, manifests)
        if lender:
            require_same_samples(lender, corpus, units)
            folders[input_name(step.name, corpus)] = lender.url
        job = StageJob(step.name, corpus, self.recipe, folder, print_, folders, tuple(units))
        done = frozenset(unit.id for unit in units) if manifest else frozenset(done_units(store))
        rows = sum(unit.rows for unit in units)
        size = manifest.bytes if manifest else step.row_bytes(self.recipe) * rows or None
        return Planned(step.name, corpus, job, identity, (), len(units), rows, done, manifest, size)

    def require_enough_rows(self) -> None:
        """Raise `UserError` where the sources have too few rows to train a teacher on, before any is downloaded."""
        teacher = self.recipe.teacher
        rows = sum(planned.num_rows for planned in self.step("download", self.recipe.training_corpora))
        if isinstance(teacher, TrainedTeacher) and rows < teacher.batch_size:
            corpora = ", ".join(f"corpora.{name}" for name in self.recipe.training_corpora)
            raise UserError(
                f"teacher.batch_size={teacher.batch_size} is over the {rows} rows of {corpora}: lower it, or give more rows"
            )

    def _lender(self, step: Step, corpus: str | None) -> Store | None:
        lender = step.shares_captions(self.recipe, corpus)
        return self.root.at(join(step.folder.format(corpus=corpus), lender)) if lender else None

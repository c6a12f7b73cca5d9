"""The contract between a stage's plan, its work and the executors that run it.

A plan is data: which units, into which folder, from which inputs. A stage's work is a `Worker` class in
`pipelines.stages.<stage>`, opened once per process and called once per unit; it writes files to local
scratch and never commits. `pipelines.core.commit` does, in the same way for every executor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from dualtoken.infra.digests import FileDigest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.resources import demands, per_worker
from dualtoken.pipelines.core.receipts import Receipt
from dualtoken.pipelines.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Unit:
    """One stage's work on one input shard, giving one output shard; independent of all others and idempotent."""

    id: str
    """Names the output: 00000, 00001, ..."""
    rows: int
    """Samples in; the ledger must account for each. Zero where a unit has no samples, such as a training run."""


@dataclass(frozen=True, slots=True)
class StageJob:
    """One stage on one corpus (or on none), with all that decides its output; goes to every worker."""

    stage: str
    corpus: str | None
    recipe: Recipe
    folder: str
    """Where the outputs go: a path or URL that ends in the fingerprint."""
    fingerprint: str
    inputs: Mapping[str, str]
    """Folders of earlier stages, by name, such as `shards/scenes-train`."""
    units: tuple[Unit, ...]
    restores: Mapping[str, Receipt | None] = field(default_factory=dict)
    """By unit that is done again to restore its files, the receipt that they must agree with; None where it is lost or unreadable."""

    @property
    def label(self) -> str:
        """Name the job for people: `download scenes-train`."""
        return f"{self.stage} {self.corpus}" if self.corpus else self.stage

    @property
    def gpus(self) -> float:
        """How many GPUs, or what share of one, the recipe gives a worker."""
        return per_worker(self.recipe, self.stage)[1]

    @property
    def gpu_setting(self) -> str:
        """Say what decides that: `train.use_gpu=true`."""
        return demands(self.recipe, self.stage)[1].keys

    def store(self) -> Store:
        """Open the output folder."""
        return Store(self.folder)

    def input(self, kind: str, corpus: str | None = None) -> Store:
        """Open an earlier stage's folder: of this job's corpus, or of the one named, or of none."""
        name = corpus or self.corpus
        return Store(self.inputs[f"{kind}/{name}" if f"{kind}/{name}" in self.inputs else kind])


@dataclass(frozen=True, slots=True)
class UnitOutput:
    """What a worker leaves in scratch for one unit."""

    files: tuple[str, ...]
    """Names relative to the scratch folder, which are also their names in the output folder."""
    ledger: pa.Table | None
    """A row per input sample, `LEDGER_SCHEMA`; None where there are no samples."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the receipt: code usage, throughput, whatever a later stage or the report reads."""
    digests: Mapping[str, FileDigest] = field(default_factory=dict)
    """Of those files whose checksums were taken while they were written; the others are read once more."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of the parts of the work, where it is timed; with `commit` they become the receipt's fact `seconds`."""


class Worker(Protocol):
    """A stage's work. Its constructor takes the job and loads the models, so that a process does so once."""

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Do one unit; write its files below `scratch`."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """A job and those of its units that have no receipt."""

    job: StageJob
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """How one unit ended on a worker; the receipt is what counts, this is for the log."""

    label: str
    unit: str
    counts: Mapping[str, int]
    seconds: float
    error: str = ""
    """What went wrong, with the traceback of a bug; empty where the unit is done."""
    code: ExitCode = ExitCode.DONE
    audit: Mapping[str, Any] = field(default_factory=dict)
    """What a token shard's receipt says of its codes; of other units nothing."""

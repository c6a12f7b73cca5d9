"""The contract between a stage's plan, its work and the executors that run it.

A plan is data: which units, into which folder, from which inputs. A stage's work is a `Worker` class, named
by the stage's declaration (`pipelines.runtime.stage`), opened once per process and called once per unit. It
writes files to local scratch and never commits: `pipelines.core.commit` does, in the same way for every
executor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol

import pyarrow as pa
from typing_extensions import TypeVar

from dualtoken.infra.digests import FileDigest
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.mllm import MllmStageConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.resources import Resources, cpu_worker
from dualtoken.pipelines.config.run import RunConfig
from dualtoken.pipelines.config.train import TrainConfig
from dualtoken.pipelines.core.receipts import FileRecord, Receipt
from dualtoken.pipelines.errors import ExitCode

ConfigT_co = TypeVar("ConfigT_co", bound=RunConfig, default=Recipe, covariant=True)
"""Configuration of a job: a recipe's, unless a job says otherwise."""

Engine = Literal["map", "ray_train"]
"""`map` maps workers over units; `ray_train` runs one unit in a group of data-parallel workers."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One stage's work on one input shard, giving one output shard; independent of others and idempotent."""

    id: str
    """Name of the output: 00000, 00001, ..."""
    rows: int
    """Samples in; the ledger must account for each. Zero where a unit has no samples, such as a training
    run."""


@dataclass(frozen=True, slots=True)
class StageJob(Generic[ConfigT_co]):
    """One stage on one corpus (or on none), with all that decides its output; goes to every worker."""

    stage: str
    corpus: str | None
    recipe: ConfigT_co
    folder: str
    """Path or URL of the outputs; it ends in the fingerprint."""
    fingerprint: str
    inputs: Mapping[str, str]
    """Folders of earlier stages, by name, such as `download/scenes-train`."""
    units: tuple[Unit, ...]
    worker: str = ""
    """The worker's class as `module:name`."""
    resources: Resources | None = None
    """Resources that the stage asks of a cluster; one CPU a worker by default."""
    engine: Engine = "map"
    """How the units are run on a cluster."""
    training_key: str = "train"
    """Key of the recipe with the settings of a training's workers and checkpoints."""
    shown_corpora: tuple[str, ...] = ()
    """Corpora whose samples the outputs show: a unit is not committed once one of them was forgotten."""
    code: str = ""
    """Hash of the sources that decide the bytes; no part of the fingerprint."""
    restores: Mapping[str, Receipt | None] = field(default_factory=dict)
    """Receipts that restored files must agree with, by unit that is done again to restore them;
    None where the receipt is lost or unreadable."""

    @property
    def label(self) -> str:
        """Name the job for people: `download scenes-train`."""
        return label(self.stage, self.corpus)

    @property
    def asks(self) -> Resources:
        """What the stage asks of a cluster."""
        return self.resources or cpu_worker(self.recipe)

    @property
    def gpus(self) -> float:
        """How many GPUs, or what share of one, the recipe gives a worker."""
        return self.asks.gpus

    @property
    def gpu_setting(self) -> str:
        """The setting that decides that: `train.use_gpu=true`."""
        _, gpu = self.asks.demands
        return gpu.keys

    @property
    def training(self) -> TrainConfig | MllmStageConfig:
        """Settings of the workers and checkpoints of a job that trains."""
        settings = getattr(self.recipe, self.training_key)
        assert settings is not None, f"a stage that trains by {self.training_key} runs where there is one"
        return settings

    def store(self) -> Store:
        """Open the output folder."""
        return Store(self.folder)

    def input(self, stage: str, corpus: str | None = None) -> Store:
        """Open an earlier stage's folder: a corpus's, by default this job's, or the one without a corpus."""
        name = input_name(stage, corpus or self.corpus)
        return Store(self.inputs[name if name in self.inputs else stage])


AnyJob = StageJob[RunConfig]
"""A job of any configuration, as executors and commits take it."""


def label(stage: str, corpus: str | None) -> str:
    """Name a stage on a corpus for people: `download scenes-train`."""
    return f"{stage} {corpus}" if corpus else stage


def input_name(stage: str, corpus: str | None) -> str:
    """Name an input: `download/scenes-train`, or `teacher`."""
    return f"{stage}/{corpus}" if corpus else stage


@dataclass(frozen=True, slots=True)
class UnitOutput:
    """Output of a worker for one unit: files in scratch, ledger and facts."""

    files: tuple[str, ...]
    """Names relative to the scratch folder, which are also their names in the output folder."""
    ledger: pa.Table | None
    """A row per input sample, `LEDGER_SCHEMA`; None where there are no samples."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for the receipt: code usage, throughput, whatever a later stage or the report reads."""
    digests: Mapping[str, FileDigest] = field(default_factory=dict)
    """Checksums of those files that were hashed while they were written; the others are read once more."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds by part of the work, where it is timed; with `commit` they become the receipt's fact
    `seconds`."""


class StageExtras(NamedTuple):
    """Additions of a finished stage to its units' files: details of the manifest, and further files."""

    details: Mapping[str, Any]
    """JSON values for the manifest."""
    files: Sequence[FileRecord]
    """Files of the stage as a whole, such as an index; they are uploaded already."""


class Worker(Protocol):
    """A stage's work. Its constructor takes the job and loads the models, so that a process does so once."""

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Do one unit; write its files below `scratch`."""
        ...


class TrainingWorker(Worker, Protocol):
    """The worker of a stage whose engine is `ray_train`: `run` trains in this process, `loop` in a group."""

    loop: ClassVar[Callable[[dict[str, Any], Any], bool]]
    """The training loop that every process of the group runs, given `{"job": StageJob}` and its
    `TrainContext`. False where it ended before the last step, since it was asked to stop."""

    validate: ClassVar[Callable[[dict[str, Any], int], dict[str, float]] | None]
    """Measures a step's checkpoint on held-out samples, and stores the metrics, given the same and the step;
    None where the stage has no such samples."""
    give_up_validation: ClassVar[Callable[[dict[str, Any], int], None] | None]
    """Notes that a step's checkpoint could not be measured, given the same; None likewise."""

    @staticmethod
    def output(job: StageJob, scratch: Path) -> UnitOutput:
        """Take the stage's files out of the job's last checkpoint."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """A job and those of its units that have no receipt."""

    job: AnyJob
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class UnitOutcome:
    """Outcome of one unit on a worker, for the log; the receipt alone says that it is done."""

    label: str
    """The job's, which with the unit tells outcomes apart."""
    unit: str
    counts: Mapping[str, int]
    seconds: float
    error: str = ""
    """Message of the failure, with the traceback of a bug; empty where the unit is done."""
    code: ExitCode = ExitCode.DONE
    audit: Mapping[str, Any] = field(default_factory=dict)
    """The audit of a token shard, from its receipt; empty for every other unit."""
    ends_run: bool = False
    """Whether the other units would fail alike, such as for wrong credentials."""
    needs_new_process: bool = False
    """Whether the process that failed can do no other unit either, such as one that lost its GPU."""

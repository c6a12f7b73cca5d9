"""What an evaluation comes to: `summary.json`, which comparisons, nights and pages read.

An evaluation is of one subject (a model's folder, by the digest of its files) on one or more sets, each by
one or more protocols. Imports neither torch nor ray.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dualtoken.pipelines.core.receipts import Record, Sha256

SUMMARY = "summary.json"
"""Name of the file, in an evaluation's folder."""
SCORES = "scores.parquet"
"""Name of a set's score table, in the folder of its result."""
CARD = "README.md"
"""Name of an evaluation's card, beside its summary."""
SCHEMA = 1
"""Version of this record; a reader refuses a newer one."""


def summary_folder(evaluation: str) -> str:
    """Name the folder of an evaluation's summary and card, below the evaluation's root."""
    return f"summaries/{evaluation}"


Direction = Literal["higher", "lower"]
"""Which values are better."""


class MetricValue(Record):
    """A metric of a subject on a set, with what can be said of its error."""

    value: float
    low: float | None = None
    """Lower end of the 95 % interval; None where no interval is known."""
    high: float | None = None
    error: float | None = None
    """Standard error of the value over the set's samples."""
    n: int
    """Samples that the value is made from."""
    direction: Direction
    unit: str = ""
    """Unit that follows the number, such as `dB` or `%`."""
    margin: float
    """Least difference that matters in practice, in the same unit; not negative."""
    per_sample: str | None = None
    """Column of the score tables that holds each sample's part of it: its own value where the metric is a
    mean, its influence where it is not; None where there is none."""
    is_mean: bool = True
    """Whether the value is the mean of that column. Where not, the column holds influences of mean 0."""


class SetResult(Record):
    """All metrics of one set by one protocol."""

    set_name: str
    set_hash: Sha256
    """Hash of the set's keys, images, labels and captions."""
    protocol: str
    """Name of the protocol."""
    protocol_hash: Sha256
    """Hash of all that decides a number beside subject and set."""
    protocol_content: dict[str, Any]
    """The protocol itself, so that two of unlike hash can be compared field by field."""
    metrics: Annotated[dict[str, MetricValue], Field(min_length=1)]
    scores: str
    """Folder of the score tables: `scores/<set>/<protocol>` below the evaluation's folder."""

    def series(self, metric: str) -> str:
        """Name a metric of this set and protocol, as histories and comparisons do."""
        return f"{self.set_name}/{self.protocol}/{metric}"


class Subject(Record):
    """What was evaluated."""

    kind: Literal["tokenizer", "mllm"]
    name: str
    """Folder or hub name, as it was given."""
    digest: Sha256
    """Hash over the names and contents of the model's files."""


class Environment(Record):
    """What an evaluation was made by; it decides no number, unless something is wrong."""

    code: str
    """Hash of the sources that evaluated."""
    commit: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    """Versions by package, and digests of the models that packages bring, `<package>/<file>`."""
    device: str = ""
    """Device as `describe_device` names it."""
    machine: str = ""
    """Processor's model name."""


class EvaluationSummary(Record):
    """The result of an evaluation."""

    advice: ClassVar[str] = "evaluate once more"

    schema_version: int = SCHEMA
    evaluation: str
    """Fingerprint: of subject, sets, protocols and, in a nightly, the night."""
    subject: Subject
    results: Annotated[tuple[SetResult, ...], Field(min_length=1)]
    environment: Environment
    measured_at: str
    """End of the evaluation: UTC, ISO 8601."""
    notes: tuple[str, ...] = ()
    """What makes the numbers unlike others, such as a batch halved for want of memory."""

    def metrics(self) -> dict[str, MetricValue]:
        """Return all values by series: `<set>/<protocol>/<metric>`."""
        found: dict[str, MetricValue] = {}
        for result in self.results:
            for name, value in result.metrics.items():
                found[result.series(name)] = value
        return found

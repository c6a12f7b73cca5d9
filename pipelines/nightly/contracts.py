"""What the nightly asks of others: something that measures a subject, and a chart that judges values."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.evaluation.summary import Direction, EvaluationSummary

Clock = Callable[[], datetime]
"""Returns the time with its zone."""
AGAIN = "-again"
"""Ending of the name of an attempt that repeats another one."""


class SubjectRequest(NamedTuple):
    """A model that is to be measured."""

    name: str
    """Name in the spec, or `canary`."""
    kind: Literal["recipe", "folder", "canary"]
    place: str | None
    """Folder or URL of the saved model; None for the canary that the evaluator makes itself."""
    evaluation: str
    """File that says what the sets and protocols are."""
    sets: tuple[str, ...]
    protocols: tuple[str, ...]
    backfilled: bool = False
    """Whether it is measured for a night long past: speeds say nothing then, and are left out."""


class Measure(Protocol):
    """Measures a model anew, whatever was measured before."""

    def __call__(
        self, subject: SubjectRequest, folder: Store, night: str, attempt: str, /
    ) -> EvaluationSummary:
        """Return the summary; score tables are written into the folder.

        An attempt whose name ends with `AGAIN` is to be measured by another worker than the one before it.
        """
        ...


class Point(NamedTuple):
    """A metric's value of a night."""

    night: str
    value: float
    protocol_hash: str
    """Hash of set and protocol: only values with equal ones are compared."""


class Judgement(Protocol):
    """What the chart says of one night of a metric; other fields are kept beside these."""

    @property
    def state(self) -> Literal["too_few", "ok", "improved", "suspected", "regressed", "drifted"]:
        """State of the night."""
        ...

    @property
    def residual(self) -> float | None:
        """Deviation from earlier nights, as a standard normal deviate."""
        ...

    @property
    def reason(self) -> str:
        """One sentence for people."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


class Judge(Protocol):
    """Judges each night of a metric by the nights before it."""

    def __call__(
        self,
        points: Sequence[Any],
        direction: Direction,
        margin: float,
        rules: Any,  # noqa: ANN401  (the chart's own)
        baseline: float | None = None,
        acknowledged: Collection[str] = (),
        /,
    ) -> Sequence[Judgement]:
        """Return a judgement for each point, in their order."""
        ...


class Chart(NamedTuple):
    """A chart with its rules."""

    judge: Judge
    rules: Any
    """What the chart takes as its rules."""
    version: str
    """Hash of the rules, which names verdicts."""


RequireMeasurable = Callable[[NightlySpec], None]
"""Raises `UserError` for a spec that no night could be whole by."""


class Nightly(NamedTuple):
    """What a night is measured, judged and told with."""

    measure: Measure
    chart: Chart
    clock: Clock
    print_line: PrintLine
    require_measurable: RequireMeasurable
    """Called before a night is begun: a night is measured once, and a misspelt metric would spoil it."""

"""The chart and the measurement that commands use, found when they are first needed.

The measurement brings torch, and looking at a history must not.
"""

import dataclasses
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.mistakes import closest
from dualtoken.pipelines.config.nightly import NightlySpec
from dualtoken.pipelines.config.parse import load_evaluation
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.summary import EvaluationSummary
from dualtoken.pipelines.nightly.contracts import Chart, Nightly, SubjectRequest
from dualtoken.pipelines.nightly.decisions import SeriesHistory, stored_rules
from dualtoken.pipelines.nightly.history import History
from dualtoken.pipelines.nightly.session import Session

CHART = "dualtoken.pipelines.nightly.chart"
MEASURE = "dualtoken.pipelines.nightly.measure"
ALARMS_PER_YEAR = 1.0
"""False alarms a year that `calibrate` allows all primary series together."""


def open_session(spec: NightlySpec, print_line: PrintLine) -> Session:
    """Return a command's work on a spec's history, with the rules that the spec names."""
    history = History(spec.root, spec.name)
    rules = stored_rules(history, spec.ruleset) if spec.ruleset else {}
    nightly = Nightly(measure_now, open_chart(rules), _utc_now, print_line, require_measurable)
    return Session(spec, nightly, history)


def open_chart(rules: Mapping[str, Any]) -> Chart:
    """Return the night chart with its default rules, but for those that are given."""
    module = import_module(CHART)
    ruleset = module.Ruleset(**rules)
    return Chart(module.judge, ruleset, ruleset.version)


def measure_now(subject: SubjectRequest, folder: Store, night: str, attempt: str) -> EvaluationSummary:
    """Measure a subject by `evaluate`."""
    return import_module(MEASURE).measure(subject, folder, night, attempt)


def require_measurable(spec: NightlySpec) -> None:
    """Raise `UserError` where the evaluation has no such set, protocol or metric as the spec names."""
    config = load_evaluation(spec.evaluation, root=spec.root)
    where = f"in {spec.evaluation}"
    for key, names, known in (
        ("sets", spec.sets, config.sets),
        ("protocols", spec.protocols, config.protocols),
    ):
        for name in names:
            _require_known(f"{key}={name} is not", name, known, where)
    for series in spec.primary:
        _, protocol, metric = series.split("/")
        metrics = config.protocols[protocol].metrics
        _require_known(
            f"primary={series}: {metric} is not among protocols.{protocol}.metrics", metric, metrics, where
        )


def propose(histories: Mapping[str, SeriesHistory]) -> dict[str, Any]:
    """Return the chart's rules whose limits fit the noise of the histories."""
    module = import_module(CHART)
    given: dict[str, Any] = {}
    for name, history in histories.items():
        points = tuple(module.Point(*point) for point in history.points)
        given[name] = module.History(points, history.direction)
    return dataclasses.asdict(module.calibrate(given, module.Ruleset(), ALARMS_PER_YEAR, 0))


def _require_known(mistake: str, name: str, known: Collection[str], where: str) -> None:
    if name not in known:
        match = closest(name, list(known))
        hint = f"did you mean {match}?" if match else f"take one of {', '.join(known)}"
        raise UserError(f"{mistake} {where}: {hint}")


def _utc_now() -> datetime:
    return datetime.now(UTC)

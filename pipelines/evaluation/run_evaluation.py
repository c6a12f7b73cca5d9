"""Runs an evaluation: resolves its sets, evaluates each by each protocol, and writes summary and card.

Results lie below the evaluation's root: `sets/`, `scores/<set>/<protocol>/<fingerprint>/`, and for each
evaluation `summaries/<evaluation>/`. The same model, set and protocol are evaluated once by the same
code, unless `salt` says that they are to be measured anew, as every night does.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.source_code import code_hash, commit
from dualtoken.infra.storage import Store
from dualtoken.model.config.base import validated
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.hub.model_name import CONFIG
from dualtoken.model.hub.saved_model import read_config
from dualtoken.pipelines.config.evaluation import EvaluationConfig, EvaluationProtocol
from dualtoken.pipelines.config.resources import inference_worker
from dualtoken.pipelines.core.commit import write_stage_record
from dualtoken.pipelines.core.messages import PrintLine, pluralized
from dualtoken.pipelines.core.receipts import (
    done_units,
    fingerprint,
    read_manifest,
    read_receipts,
)
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutcome, Work
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.deciding_packages import deciding_packages
from dualtoken.pipelines.evaluation.evaluate import MODEL_INPUT, SET_INPUT, STAGE, TEACHER_INPUT
from dualtoken.pipelines.evaluation.evaluate_finish import RESULT, TokenizerSizes, finish_evaluation
from dualtoken.pipelines.evaluation.evaluation_card import card
from dualtoken.pipelines.evaluation.feature_network import feature_width, require_enough_images
from dualtoken.pipelines.evaluation.metric_catalogue import (
    needs_teacher,
    require_others,
    require_set_has,
    require_size,
)
from dualtoken.pipelines.evaluation.protocols import protocol_content, protocol_hash
from dualtoken.pipelines.evaluation.saved_subject import model_digest, read_subject, require_kind
from dualtoken.pipelines.evaluation.sets import ResolvedSet, resolve
from dualtoken.pipelines.evaluation.summary import (
    CARD,
    SUMMARY,
    Environment,
    EvaluationSummary,
    SetResult,
    Subject,
    summary_folder,
)
from dualtoken.pipelines.runtime.executor import Executor
from dualtoken.pipelines.runtime.run import run_units

VERSION = 1
"""Raised when the same inputs give other bytes than before."""
WORKER = "dualtoken.pipelines.evaluation.evaluate:Worker"
_CODE = ("dualtoken.pipelines.evaluation.evaluate", "dualtoken.pipelines.evaluation.evaluate_finish")


class ModelPlace(NamedTuple):
    """A saved tokenizer or unified model, and the teacher that its semantic codes are measured against."""

    name: str
    """What the user called it."""
    folder: Store
    teacher: Store | None


class SetRun(NamedTuple):
    """A set by a protocol."""

    job: StageJob[EvaluationConfig]
    identity: dict[str, Any]
    """All that decides the job's output."""
    protocol: dict[str, Any]
    """Content of the job's protocol."""


class PlannedEvaluation(NamedTuple):
    """An evaluation whose sets are resolved, so that it is known what it comes to."""

    root: Store
    subject: Subject
    sizes: TokenizerSizes
    runs: tuple[SetRun, ...]
    """Each set by each protocol."""

    @property
    def fingerprint(self) -> str:
        """Hash of subject, sets, protocols, code and salt."""
        return fingerprint({"evaluation": [run.job.fingerprint for run in self.runs]})

    @property
    def code(self) -> str:
        """Hash of the sources that evaluate."""
        return self.runs[0].job.code

    @property
    def folder(self) -> Store:
        """Folder of the summary."""
        return self.root.at(summary_folder(self.fingerprint))

    @property
    def is_done(self) -> bool:
        """Whether its summary is there."""
        return self.folder.exists(SUMMARY)


class Evaluated(NamedTuple):
    """An evaluation that is done."""

    summary: EvaluationSummary
    folder: Store
    """Folder of `summary.json` and the card."""


def run_evaluation(
    config: EvaluationConfig, model: ModelPlace, executor: Executor, print_line: PrintLine, salt: str = ""
) -> Evaluated:
    """Evaluate a model on all sets of a configuration by all of its protocols.

    A unified model's folder is measured by metrics of tokenizers too, through its own tokenizer.

    Raises `UserError` as `plan_evaluation`, and `UnitsFailed` where units fail: the same call goes on then.
    """
    planned = plan_evaluation(config, model, print_line, salt)
    _run(planned.runs, executor, print_line)
    return _written(planned, [_result(run, planned.sizes) for run in planned.runs])


def plan_evaluation(
    config: EvaluationConfig, model: ModelPlace, print_line: PrintLine, salt: str = ""
) -> PlannedEvaluation:
    """Resolve all sets of a configuration, and return what is to be measured of a model; measures nothing.

    Raises `UserError` for a set that cannot be read or lacks what a metric needs, for a metric of unified
    models on a tokenizer, and for a network of `fd` that cannot be opened.
    """
    root = Store(config.root)
    if root.is_local:
        require_writable(Path(config.root), "set --root to a folder that can be")
    saved = read_subject(model.folder)
    for protocol_name, protocol in config.protocols.items():
        require_kind(saved, model.name, protocol_name, protocol.metrics)
    sizes = _sizes(saved.tokenizer)
    subject = Subject(kind=saved.kind, name=model.name, digest=model_digest(model.folder))
    teacher_digest = None
    if any(map(needs_teacher, config.protocols.values())):
        teacher_digest = _teacher_digest(model)
    # The files of weights are hashed once: they may be of hundreds of megabytes.
    contents = {
        name: protocol_content(protocol, teacher_digest) for name, protocol in config.protocols.items()
    }
    runs: list[SetRun] = []
    for name, set_config in config.sets.items():
        resolved, folder = resolve(name, set_config, root, config.unit_rows)
        print_line(f"set {name}: {pluralized(resolved.num_samples, 'image')}, {resolved.set_hash[:12]}")
        for protocol_name, protocol in config.protocols.items():
            require_set_has(protocol, protocol_name, name, resolved.has)
            require_others(protocol, name, resolved.num_samples)
            require_size(protocol, protocol_name, sizes.image_size)
            identity = {
                "stage": STAGE,
                "version": VERSION,
                "model": subject.digest,
                "set": resolved.set_hash,
                "protocol": protocol_hash(contents[protocol_name]),
                "metrics": sorted(protocol.metrics),
                "unit_rows": config.unit_rows,
                "code": code_hash(*_CODE),
                "salt": salt,
            }
            job = _job(config, model, resolved, folder, protocol_name, protocol, identity)
            runs.append(SetRun(job, identity, contents[protocol_name]))
    _require_features(runs)
    return PlannedEvaluation(root, subject, sizes, tuple(runs))


def _require_features(runs: Sequence[SetRun]) -> None:
    """Raise `UserError` where the network of `fd` cannot be opened, or has too many channels for a set.

    It is opened here too, since a worker would tell of it only once others have begun.
    """
    widths: dict[str, int] = {}
    for job in (run.job for run in runs):
        ((protocol_name, protocol),) = job.recipe.protocols.items()
        if "fd" not in protocol.metrics or read_manifest(job.store()) is not None:
            continue
        assert protocol.features is not None, "the protocol requires it"
        if protocol_name not in widths:
            widths[protocol_name] = feature_width(protocol.features)
        (set_name,) = job.recipe.sets
        num_images = sum(unit.rows for unit in job.units)
        require_enough_images(protocol_name, set_name, num_images, widths[protocol_name])


def _teacher_digest(model: ModelPlace) -> str:
    if model.teacher is None:
        raise UserError(
            f"{model.name}: no teacher is known, or it is not where it was, and metrics of understanding are "
            "measured against it: name its folder by --teacher, or choose a protocol without them"
        )
    return model_digest(model.teacher)


def _job(
    config: EvaluationConfig,
    model: ModelPlace,
    resolved: ResolvedSet,
    set_folder: str,
    protocol_name: str,
    protocol: EvaluationProtocol,
    identity: Mapping[str, Any],
) -> StageJob[EvaluationConfig]:
    alone = config.model_copy(
        update={
            "sets": {resolved.name: config.sets[resolved.name]},
            "protocols": {protocol_name: protocol},
        }
    )
    inputs = {SET_INPUT: set_folder, MODEL_INPUT: model.folder.url}
    if needs_teacher(protocol):
        assert model.teacher is not None
        inputs[TEACHER_INPUT] = model.teacher.url
    name = fingerprint(identity)
    return StageJob(
        stage=STAGE,
        corpus=f"{resolved.name}.{protocol_name}",  # outcomes of units are told apart by it
        recipe=alone,
        folder=Store(config.root).at(f"scores/{resolved.name}/{protocol_name}/{name}").url,
        fingerprint=name,
        inputs=inputs,
        units=tuple(Unit(unit, rows) for unit, rows in resolved.units.items()),
        worker=WORKER,
        resources=inference_worker(config),
        code=code_hash(*_CODE),
    )


def _run(runs: Sequence[SetRun], executor: Executor, print_line: PrintLine) -> None:
    work: list[Work] = []
    for job, identity, _ in runs:
        write_stage_record(job, identity)
        done = done_units(job.store())
        units = tuple(unit for unit in job.units if unit.id not in done)
        if units:
            work.append(Work(job, units))
    if not work:
        return
    print_line(f"evaluate: {pluralized(sum(len(each.units) for each in work), 'unit')} to do")
    run_units(work, executor, print_line, _ignore)


def _ignore(_: UnitOutcome) -> None:
    """Observe nothing of an outcome."""


def _sizes(folder: Store) -> TokenizerSizes:
    with scratch_folder() as scratch:
        try:
            saved = read_config(folder.local_folder(Path(scratch)))
            config = validated(TokenizerConfig, saved.config, f"{folder.url}/{CONFIG}: config")
        except ValueError as error:
            raise UserError(str(error)) from None
    return TokenizerSizes(config.grid_size, config.image_size)


def _result(run: SetRun, sizes: TokenizerSizes) -> SetResult:
    if read_manifest(run.job.store()) is not None:
        return SetResult.read(run.job.store(), RESULT)
    return finish_evaluation(run.job, sizes, run.protocol)


def _written(planned: PlannedEvaluation, results: Sequence[SetResult]) -> Evaluated:
    summary = EvaluationSummary(
        evaluation=planned.fingerprint,
        subject=planned.subject,
        results=tuple(results),
        environment=_environment(planned),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=tuple(_notes(planned.runs)),
    )
    folder = planned.folder
    if planned.is_done:
        return Evaluated(EvaluationSummary.read(folder, SUMMARY), folder)
    folder.put_bytes(card(summary, folder.url).encode(), CARD)
    folder.put_if_absent(summary.to_bytes(), SUMMARY)
    return Evaluated(EvaluationSummary.read(folder, SUMMARY), folder)


def _environment(planned: PlannedEvaluation) -> Environment:
    devices: set[str] = set()
    for run in planned.runs:
        for receipt in read_receipts(run.job.store()).values():
            devices.add(receipt.facts["device"])
    protocols = [(next(iter(run.job.recipe.protocols.values())), run.protocol) for run in planned.runs]
    return Environment(
        code=planned.code,
        commit=commit(),
        packages=deciding_packages(protocols),
        device="; ".join(sorted(devices)),
        machine=platform.processor() or platform.machine(),
    )


def _notes(runs: Sequence[SetRun]) -> Iterator[str]:
    """Yield what makes the numbers unlike others: images that gave no picture."""
    for run in runs:
        manifest = read_manifest(run.job.store())
        assert manifest is not None
        for status, count in manifest.counts.items():
            if status != "ok":
                yield f"{run.job.corpus}: {count} of {manifest.rows_in} images left out, {status}"

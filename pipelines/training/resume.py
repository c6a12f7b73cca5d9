"""Goes on with a training: from the newest checkpoint of its own folder, or of an unfinished one beside it.

Some values of a recipe may change while a training goes on, such as `train.steps`. They are part of the
fingerprint of what it ends with, so the same training goes on in another folder then: it begins from the
checkpoint of the folder that it left. A finished training keeps its folder, and nothing goes on from it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from dualtoken.infra.storage import Store
from dualtoken.model.hub.saved_model import CARD
from dualtoken.pipelines.core.receipts import MANIFEST_FILE, STAGE_FILE, DamagedRecordError, StageRecord
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.training.checkpoint_saver import load_checkpoint
from dualtoken.pipelines.training.checkpoints import Checkpoints, RunRecord
from dualtoken.pipelines.training.task import Task
from dualtoken.pipelines.training.worker_group import WorkerGroup

MAY_CHANGE = ("steps", "learning_rate", "warmup_steps", "accumulate_steps", "compile")
"""Keys of `train`, and of a teacher that is trained, that may change while a training goes on."""
_ALSO_RECORDED = ("cpus_per_worker", "parallel")
"""Keys of `train` that no fingerprint knows, and that are recorded where they change."""
_TRAINED = ("train", "teacher", "mllm")
"""Settings of a stage that hold such keys."""


def job_checkpoints(job: StageJob) -> Checkpoints:
    """Return the checkpoints of a job's own folder."""
    config = job.training
    return Checkpoints(
        job.store(),
        config.keep_checkpoints,
        config.keep_best,
        validates_apart=config.validate_in == "task",
    )


def resume(job: StageJob, task: Task[Any], workers: WorkerGroup, scratch: Path) -> tuple[RunRecord, ...]:
    """Bring a task to the newest whole checkpoint; return the parts of its training, this one the last."""
    found = workers.of_first(partial(_find, job, task.steps, scratch))
    earlier: tuple[RunRecord, ...] = ()
    if found is not None:
        url, step = found
        checkpoint = Checkpoints(Store(url)).at_step(step)
        workers.all(partial(load_checkpoint, checkpoint, task.parts, _copies(scratch, url)))
        task.step = step + 1
        earlier = checkpoint.receipt.runs
        if workers.rank == 0:
            _say(job, url, step)
    return _with_this_run(job, earlier, task.step, workers.size)


def _find(job: StageJob, steps: int, scratch: Path) -> tuple[str, int] | None:
    """Return the folder and the step of the newest whole checkpoint; None where there is none."""
    own = job_checkpoints(job).latest(_copies(scratch, job.folder))
    if own is not None:
        return job.folder, own.receipt.step
    newest: tuple[str, int] | None = None
    for store in _left_folders(job):
        # At least one step is left: it ends with a checkpoint in this folder.
        checkpoint = Checkpoints(store).latest(_copies(scratch, store.url), before_step=steps - 1)
        if checkpoint is not None and (newest is None or newest[1] < checkpoint.receipt.step):
            newest = (store.url, checkpoint.receipt.step)
    return newest


def _left_folders(job: StageJob) -> Iterator[Store]:
    """Yield the folders of the same training, unfinished, with other values of what may change."""
    own = job.store()
    record = _stage_record(own)
    if record is None:
        return
    wanted = _without_changeable(record.identity)
    parent, _, own_name = own.url.rpartition("/")
    for name in Store(parent).folders():
        beside = own.beside(name)
        if name == own_name or beside.exists(MANIFEST_FILE):
            continue
        other = _stage_record(beside)
        if other is not None and _without_changeable(other.identity) == wanted:
            yield beside


def _stage_record(store: Store) -> StageRecord | None:
    try:
        return StageRecord.read(store, STAGE_FILE)
    except (FileNotFoundError, DamagedRecordError):
        return None


def _without_changeable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a fingerprint is made from, less what may change while a training goes on."""
    settings = dict(identity["settings"])
    for name in _TRAINED:
        if isinstance(settings.get(name), dict):
            settings[name] = _kept(settings[name])
    return {**identity, "settings": settings}


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that stay, those of the optimiser likewise: it may have a rate of its own."""
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    if isinstance(kept.get("optimizer"), dict):
        kept["optimizer"] = _kept(kept["optimizer"])
    return kept


def _copies(scratch: Path, url: str) -> Path:
    """Return where the checkpoints of a remote folder are copied to, once for looking and loading."""
    return scratch / "checkpoints" / url.rpartition("/")[2]


def _say(job: StageJob, url: str, step: int) -> None:
    place = "" if url == job.folder else f" of {url}, which other values of the recipe began"
    print(f"{job.label}: goes on after step {step + 1}{place}", flush=True)


def _with_this_run(
    job: StageJob, earlier: tuple[RunRecord, ...], first_step: int, num_workers: int
) -> tuple[RunRecord, ...]:
    """Return the parts of a training with this one, which is the last part's own where nothing changed."""
    this = RunRecord(first_step=first_step, num_workers=num_workers, settings=_recorded(job))
    kept = tuple(run for run in earlier if run.first_step < first_step)
    if kept and _same_settings(kept[-1], this):
        return kept
    return (*kept, this)


def _same_settings(run: RunRecord, other: RunRecord) -> bool:
    return (run.num_workers, run.settings) == (other.num_workers, other.settings)


def _recorded(job: StageJob) -> dict[str, Any]:
    values = job.training.model_dump(mode="json")
    return {key: values[key] for key in (*MAY_CHANGE, *_ALSO_RECORDED) if key in values}


def add_runs_to_card(folder: Path, runs: tuple[RunRecord, ...]) -> None:
    """Say in a model's card what changed while it was trained; nothing where nothing did."""
    if len(runs) < 2:
        return
    lines = ["", "## Training", "", "Settings changed while the model was trained:", ""]
    for before, run in pairwise(runs):
        lines.append(f"* from step {run.first_step} on: {', '.join(_changes(before, run))}")
    card = folder / CARD
    card.write_text(card.read_text(encoding="utf-8") + "\n".join(lines) + "\n", encoding="utf-8")


def _changes(before: RunRecord, after: RunRecord) -> list[str]:
    old = {"num_workers": before.num_workers, **before.settings}
    new = {"num_workers": after.num_workers, **after.settings}
    return [f"{key} {old.get(key)} → {value}" for key, value in new.items() if old.get(key) != value]

"""The engine of every training: its loop, checkpoints, failure policy and log.

What is trained is a `Task`: the engine knows nothing of tokenizers or captions. The loop is the same in this
process and under Ray Train, and so are its checkpoints: either goes on where the other was stopped.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.stop_request import stop_request
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import Preempted
from dualtoken.pipelines.training.checkpoint_saver import CheckpointSaver
from dualtoken.pipelines.training.checkpoints import CheckpointReceipt, RunRecord
from dualtoken.pipelines.training.loggers import require_loggers
from dualtoken.pipelines.training.process_settings import process_settings
from dualtoken.pipelines.training.profiling import StepProfiler
from dualtoken.pipelines.training.resume import job_checkpoints, resume
from dualtoken.pipelines.training.step_policy import StepPolicy
from dualtoken.pipelines.training.task import OpenTask
from dualtoken.pipelines.training.train_context import TrainContext
from dualtoken.pipelines.training.training_log import TrainingLog
from dualtoken.pipelines.training.validation_tasks import ValidationTasks
from dualtoken.pipelines.training.watchdog import Watchdog
from dualtoken.pipelines.training.worker_group import WorkerGroup


def train(job: StageJob, context: TrainContext, open_task: OpenTask) -> bool:
    """Train to the last step, from the newest whole checkpoint if there is one.

    Where the run is asked to stop, ends early, with a checkpoint of the last step that was taken. Returns
    whether that is the last of all, and its validation is made where tasks make it.
    """
    config = job.training
    num_threads = config.cpus_per_worker if context.device.type == "cpu" else None
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(scratch_folder()))
        stack.enter_context(process_settings(num_threads))
        stack.enter_context(stop_request.deferred(config.stop_grace_seconds))
        watchdog = stack.enter_context(Watchdog(job, context, config.hang_timeout_seconds))
        workers = WorkerGroup(context, config.collective_timeout_seconds)
        workers.of_first(partial(require_loggers, job))
        task = stack.enter_context(closing(open_task(job, context, scratch)))
        runs = resume(job, task, workers, scratch)
        saver = stack.enter_context(CheckpointSaver(job_checkpoints(job), context, config))
        policy = StepPolicy(job, task, workers)
        profiler = stack.enter_context(StepProfiler(job, context, scratch))
        validations = ValidationTasks(job, context, workers)
        log = stack.enter_context(TrainingLog(job, task, context, workers, scratch, validations))
        validations.go_on(task.step - 1, log.validated_steps)

        is_due = False
        profiler.before_step(task.step)
        for batch in log.waited_for(task.batches(range(task.step, task.steps))):
            metrics = policy.take_step(batch)
            watchdog.step_taken()
            step = task.step - 1
            is_last = task.step == task.steps
            must_stop = workers.any(value=context.asked_to_stop())
            validation = log.step_taken(metrics, saver.stalled_seconds, must_stop=must_stop)
            watchdog.step_taken()
            at_interval = task.step % config.checkpoint_every == 0
            is_due = is_due or is_last or must_stop or at_interval or log.wants_checkpoint
            # Not after a bad step, which weights that are no numbers any more may have caused.
            if is_due and metrics:
                is_due = False
                receipt = _receipt(step, {**metrics, **validation}, runs)
                if log.take_checkpoint():
                    receipt = receipt.model_copy(update={"is_validated_apart": True})
                saver.save(task.parts, receipt)
                log.save()
            validations.step_taken(saver.whole_step, log.write_validation)
            if must_stop:
                break
            profiler.before_step(task.step)
        is_done = task.step == task.steps
        if validations.is_used and is_done:
            saver.finish()
            is_done = validations.finish(log.write_validation, watchdog.step_taken)
            workers.of_first(partial(job_checkpoints(job).remove_others, task.step - 1))
        return is_done


def _receipt(step: int, metrics: Mapping[str, float], runs: tuple[RunRecord, ...]) -> CheckpointReceipt:
    """Return the receipt of a checkpoint, which the files are to be added to."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return CheckpointReceipt(step=step, files=(), metrics=finite, runs=runs)


def raise_if_stopped() -> None:
    """Raise `Preempted` where a training ended because this process was asked to stop."""
    if stop_request.is_set():
        raise Preempted

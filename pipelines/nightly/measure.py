"""Measures a night's models by `evaluate`: anew, into the attempt's own folder.

A second measurement of the same night runs in a process of its own, so that what was wrong with the first
process cannot be wrong with both.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from dualtoken.infra.scratch import scratch_folder
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.evaluation import EvaluationConfig
from dualtoken.pipelines.config.parse import load_evaluation
from dualtoken.pipelines.evaluation.canary import write_canary
from dualtoken.pipelines.evaluation.metric_catalogue import needs_unified
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace, run_evaluation
from dualtoken.pipelines.evaluation.saved_subject import teacher_of
from dualtoken.pipelines.evaluation.selection import selected
from dualtoken.pipelines.evaluation.summary import EvaluationSummary
from dualtoken.pipelines.nightly.attempts import AGAIN
from dualtoken.pipelines.nightly.contracts import SubjectRequest
from dualtoken.pipelines.runtime.open_executor import open_executor


def measure(subject: SubjectRequest, folder: Store, night: str, attempt: str) -> EvaluationSummary:
    """Return the summary of a model; raises what `run_evaluation` raises."""
    if attempt.endswith(AGAIN):
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=1, mp_context=spawned) as another:
            return another.submit(_measure, subject, folder.url, f"{night} {attempt}").result()
    return _measure(subject, folder.url, f"{night} {attempt}")


def _measure(subject: SubjectRequest, folder: str, salt: str) -> EvaluationSummary:
    config = load_evaluation(subject.evaluation, root=folder)
    config = selected(config, subject.sets, subject.protocols)
    if subject.place is not None:
        return _evaluated(config, _saved(subject.name, subject.place), salt)
    with scratch_folder() as scratch:
        tokenizer, teacher = write_canary(Path(scratch))
        model = tokenizer
        if any(map(needs_unified, config.protocols.values())):
            # transformers takes seconds, which nights of tokenizers need not wait for.
            from dualtoken.pipelines.evaluation.canary_mllm import write_canary_mllm  # noqa: PLC0415

            model = write_canary_mllm(Path(scratch), tokenizer)
        return _evaluated(config, ModelPlace(subject.name, Store(str(model)), Store(str(teacher))), salt)


def _saved(name: str, place: str) -> ModelPlace:
    """Return a saved model with the teacher of its training, where the folder is a training's."""
    model = Store(place)
    return ModelPlace(name, model, teacher_of(model))


def _evaluated(config: EvaluationConfig, model: ModelPlace, salt: str) -> EvaluationSummary:
    root = Store(config.root).url
    with open_executor(config.cluster, in_process=config.in_process) as executor:
        summary = run_evaluation(config, model, executor, _say_nothing, salt).summary
    # A history may be moved as a whole: its own folders are named relative to it.
    results = [
        result.model_copy(update={"scores": result.scores.removeprefix(f"{root}/")})
        for result in summary.results
    ]
    return summary.model_copy(update={"results": tuple(results)})


def _say_nothing(_: str) -> None:
    """Take a line of progress; a night prints its own."""

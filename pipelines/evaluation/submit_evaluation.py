"""An evaluation as a job on a running Ray cluster, judged by its summary.

Its sets are resolved before, as a local evaluation resolves them: so it is known which one it is, a changed
image makes another job, and a mistake is told before there is one. The job reads model, teacher, sets and
weights where they are, so the cluster must reach them too.
"""

from dualtoken.infra.ray_jobs import JobOutcome
from dualtoken.infra.storage import Store
from dualtoken.model.config.base import Config
from dualtoken.pipelines.config.evaluation import EvaluationConfig
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import fingerprint
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace, plan_evaluation
from dualtoken.pipelines.runtime.submit import SubmittedWork, submit_work

FILE = "evaluation.json"
"""File beside the job's code that says what it does."""
ENTRY_POINT = "dualtoken.jobs.submitted_evaluation"


class SubmittedEvaluation(Config):
    """What a job evaluates."""

    evaluation: EvaluationConfig
    name: str
    """What the user called the model."""
    model: str
    """Its folder or URL."""
    teacher: str | None

    def place(self) -> ModelPlace:
        """Return where the model is."""
        return ModelPlace(self.name, Store(self.model), None if self.teacher is None else Store(self.teacher))


def submit_evaluation(
    config: EvaluationConfig, model: ModelPlace, address: str, print_line: PrintLine, *, attempts: int = 1
) -> JobOutcome:
    """Evaluate a model on the cluster with the dashboard `address`, and follow the job's log.

    A second call follows the first one's job. Raises `UserError` as `plan_evaluation`.
    """
    config = config.model_copy(update={"root": Store(config.root).url})
    planned = plan_evaluation(config, model, print_line)
    submitted = SubmittedEvaluation(
        evaluation=config,
        name=model.name,
        model=model.folder.url,
        teacher=None if model.teacher is None else model.teacher.url,
    )
    content = fingerprint({"root": config.root, "work": planned.fingerprint})
    work = SubmittedWork(
        name=f"dualtoken-evaluate-{config.name}-{content[:8]}",
        command=["python", "-m", ENTRY_POINT, FILE],
        private_files={FILE: submitted.model_dump_json(indent=1).encode()},
        record=submitted,
        code=planned.code,
        is_done=lambda: planned.is_done,
    )
    return submit_work(work, config, address, print_line, attempts=attempts)

"""`python -m jobs.submitted_evaluation FILE`: the job that `dualtoken submit evaluate` submits."""

from pathlib import Path
from typing import Annotated

import typer

from dualtoken.jobs.call import call
from dualtoken.jobs.evaluation_commands import evaluate_place
from dualtoken.jobs.exits import run_program

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is evaluated, as it was submitted.")],
) -> None:
    """Evaluate what a file says."""
    # Brings PyTorch.
    from dualtoken.pipelines.evaluation.submit_evaluation import SubmittedEvaluation  # noqa: PLC0415

    submitted = SubmittedEvaluation.model_validate_json(file.read_bytes())
    evaluate_place(submitted.evaluation, submitted.place())


if __name__ == "__main__":
    run_program(lambda: call(app, "python -m jobs.submitted_evaluation"))

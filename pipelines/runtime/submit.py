"""A stage as a job on a running Ray cluster: the same entry point, judged by its receipts."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from dualtoken.infra.ray_jobs import JobOutcome, submit_and_follow
from dualtoken.infra.storage import Store
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import fingerprint
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import require_inputs
from dualtoken.pipelines.runtime.stages import MODULES_VARIABLE, get_stage

PROJECT = Path(__file__).resolve().parents[2]


def submit_stage(
    stage: str,
    recipe: Recipe,
    address: str,
    print_line: PrintLine,
    *,
    corpora: Sequence[str] | None = None,
    attempts: int = 1,
) -> JobOutcome:
    """Run a stage on the cluster with the dashboard `address`, follow its log, and judge it by its receipts.

    The job's id is a function of the work, so a second call follows the first one's job. The recipe's root
    must be one that the cluster reaches too.
    """
    store = Store(recipe.root)
    recipe = recipe.model_copy(update={"root": store.url})
    require_inputs(stage, recipe, corpora)
    name = submission_name(stage, recipe, corpora)
    store.put_bytes(recipe.model_dump_json(indent=1).encode(), f"submitted/{name}.json")
    command = ["python", "-m", f"jobs.{stage}", f"{store.url}/submitted/{name}.json"]
    for corpus in corpora or ():
        command += ["--corpus", corpus]
    further_stages = os.environ.get(MODULES_VARIABLE)
    try:
        return submit_and_follow(
            address,
            name=name,
            entrypoint=shlex.join(command),
            working_dir=PROJECT,
            env={MODULES_VARIABLE: further_stages} if further_stages else {},
            is_done=lambda: all(planned.manifest for planned in Planner(recipe).command(stage, corpora)),
            print_line=print_line,
            max_attempts=attempts,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def submission_name(stage: str, recipe: Recipe, corpora: Sequence[str] | None) -> str:
    """Name the work of a stage by all that decides its output, as far as it is known before it runs."""
    work: list[object] = []
    for planned in Planner(recipe).command(stage, corpora):
        if planned.job:
            work.append(planned.job.fingerprint)
        else:
            work.append(get_stage(planned.stage).settings(recipe, planned.corpus))
    content = fingerprint({"root": recipe.root, "work": work})
    return f"dualtoken-{stage}-{recipe.name}-{content[:8]}"

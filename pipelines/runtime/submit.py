"""Work as a job on a running Ray cluster: a stage by its own entry point, judged by its receipts.

The recipe travels with the code, in a file that only the job's user may read, since a table's URL may hold a
signature or a password. Everything else that tells of the job, Ray's job table and the run's root, is read
by more people: there, URLs have neither query nor user part.
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dualtoken.infra.ray_jobs import JobOutcome, submit_and_follow
from dualtoken.infra.ray_upload import staged_upload
from dualtoken.infra.redaction import redacted_values
from dualtoken.infra.source_code import COMMIT_VARIABLE, commit
from dualtoken.infra.storage import Store
from dualtoken.model.config.base import Config
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.config.run import RunConfig
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import fingerprint
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.changed_code import check_code, command_code
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import require_inputs
from dualtoken.pipelines.runtime.stages import MODULES_VARIABLE, further_modules, get_stage

RECIPE_FILE = "recipe.json"
"""The recipe's file beside the job's code."""
CODE_KEY = "dualtoken_code"
COMMIT_KEY = "dualtoken_commit"
"""Keys of a job's metadata: hash and commit of the code that it runs."""


class SubmittedWork(NamedTuple):
    """A piece of work as a job does it."""

    name: str
    """Name that follows from the work, so that a second call follows the first one's job."""
    command: Sequence[str]
    """Entry point of the job; Ray shows it to everybody."""
    private_files: Mapping[str, bytes]
    """Files beside the code that only the job's user may read."""
    record: Config
    """What is done, which is kept below the root without the secrets of URLs."""
    code: str
    """Hash of the sources that decide the output."""
    is_done: Callable[[], bool]
    """Whether nothing is left to do, by what lies below the root."""


def submit_work(
    work: SubmittedWork, config: RunConfig, address: str, print_line: PrintLine, *, attempts: int = 1
) -> JobOutcome:
    """Get work done on the cluster with the dashboard `address`, follow its log, and judge it by `is_done`.

    The configuration's root must be one that the cluster reaches too.
    """
    record = json.dumps(redacted_values(work.record.model_dump(mode="json")), indent=1)
    Store(config.root).put_bytes(record.encode(), f"submitted/{work.name}.json")
    packages = {module.partition(".")[0] for module in further_modules()}
    try:
        with staged_upload(packages, work.private_files) as folder:
            return submit_and_follow(
                address,
                name=work.name,
                entrypoint=shlex.join(work.command),
                working_dir=folder,
                env=_variables(),
                is_done=work.is_done,
                print_line=print_line,
                max_attempts=attempts,
                metadata={CODE_KEY: work.code, COMMIT_KEY: commit()},
                describe_found=_describe_code(work.code, config),
            )
    except ValueError as error:
        raise UserError(str(error)) from None


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
    recipe = recipe.model_copy(update={"root": Store(recipe.root).url})
    require_inputs(stage, recipe, corpora)
    check_code(Planner(recipe).command(stage, corpora), recipe, print_line)
    command = ["python", "-m", f"dualtoken.jobs.{stage}", RECIPE_FILE]
    for corpus in corpora or ():
        command += ["--corpus", corpus]
    work = SubmittedWork(
        name=submission_name(stage, recipe, corpora),
        command=command,
        private_files={RECIPE_FILE: recipe.model_dump_json(indent=1).encode()},
        record=recipe,
        code=command_code(stage),
        is_done=lambda: all(planned.manifest for planned in Planner(recipe).command(stage, corpora)),
    )
    return submit_work(work, recipe, address, print_line, attempts=attempts)


def _variables() -> dict[str, str]:
    """Return the job's environment variables; Ray shows them to everybody."""
    variables = {COMMIT_VARIABLE: commit(), MODULES_VARIABLE: ",".join(further_modules())}
    return {name: value for name, value in variables.items() if value}


def _describe_code(code: str, config: RunConfig) -> Callable[[Mapping[str, str]], str]:
    """Return what tells a running job's code from this; raises ValueError where `code.changed` refuses it."""

    def describe(metadata: Mapping[str, str]) -> str:
        theirs = metadata.get(CODE_KEY, "unknown")
        if theirs == code:
            return f", by the same code ({code})"
        if metadata.get(COMMIT_KEY):
            theirs += f", commit {metadata[COMMIT_KEY]}"
        if config.code.changed == "refuse":
            raise ValueError(
                f"a job that does this runs already, by other code ({theirs}; this is {code}), "
                "and code.changed=refuse: let it end, stop it, or set code.changed=warn to follow it"
            )
        return f", by other code ({theirs}; this is {code})"

    return describe


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

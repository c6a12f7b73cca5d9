"""Outputs that other code made under the same fingerprint: told, or refused, as the recipe chooses.

The fingerprint is that of the recipe and the inputs. Most changes of the code change no byte, so the code is
no part of it; but a change that does would give other bytes under one name.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dualtoken.infra.source_code import code_hash
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.core.receipts import STAGE_FILE, StageRecord
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.plan import PlannedStage
from dualtoken.pipelines.runtime.stages import commands


class ChangedCode(NamedTuple):
    """A stage's folder that other code made or began."""

    label: str
    folder: str
    then: tuple[str, ...]
    """Hashes of the code that it was made by."""
    now: str
    is_finished: bool

    def __str__(self) -> str:
        done = "made" if self.is_finished else "begun"
        return (
            f"{self.label}: {self.folder} was {done} by other code "
            f"({', '.join(self.then)}; this is {self.now}) under the same fingerprint"
        )


def changed_code(planned: Iterable[PlannedStage]) -> Iterator[ChangedCode]:
    """Yield the folders among planned stages that other code made or began.

    Those that are older than the record of the code are not among them.
    """
    for plan in planned:
        if plan.job is None:
            continue
        then = _recorded(plan)
        if then and then != (plan.job.code,):
            is_finished = plan.manifest is not None
            yield ChangedCode(plan.label, plan.job.folder, then, plan.job.code, is_finished)


def _recorded(plan: PlannedStage) -> tuple[str, ...]:
    """Return the hashes of the code that a folder was made by, or begun by; none where nothing tells."""
    if plan.manifest is not None:
        return plan.manifest.codes
    assert plan.job is not None
    store = plan.job.store()
    if not store.exists(STAGE_FILE):
        return ()
    code = StageRecord.from_bytes(store.read(STAGE_FILE)).code
    return (code,) if code else ()


def check_code(planned: Iterable[PlannedStage], recipe: Recipe, print_line: PrintLine) -> None:
    """Print a line for each folder of other code, or raise `UserError`, as `code.changed` says."""
    if recipe.code.changed == "ignore":
        return
    for changed in changed_code(planned):
        if recipe.code.changed == "refuse":
            raise UserError(
                f"{changed}, and code.changed=refuse: check out that code, give another --root, "
                "or set code.changed=warn"
            )
        print_line(f"{changed}; code.changed=refuse would stop here")


def command_code(command: str) -> str:
    """Hash the sources that decide the bytes of all of a command's stages."""
    modules: list[str] = []
    for stage in commands()[command]:
        modules += stage.modules
    return code_hash(*modules)

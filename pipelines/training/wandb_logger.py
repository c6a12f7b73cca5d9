"""A training's run at Weights & Biases (docs.wandb.ai/ref/python); imported where a recipe names it."""

import os
from collections import deque
from collections.abc import Mapping

from torch import Tensor

from dualtoken.pipelines.config.engine import VALIDATION
from dualtoken.pipelines.config.loggers import WandbConfig
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.training.logger_session import CLOSE_SECONDS, End, RunFacts

# Errors of the client go to nobody else. Read while wandb is imported.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

INIT_SECONDS = 20.0
"""Time to reach the server; where there is none, the process ends so much later at most."""

VALIDATED_STEP = "validated_step"
"""Name of the step that a line's validation is of: the line's own or, of a task's, an earlier one."""


def require_key(config: WandbConfig, key: str) -> None:
    """Raise `UserError` for a run that is to be online without an API key; asks nobody, and no network."""
    if config.mode == "offline":
        return
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise UserError(f"{key}: {' '.join(str(error).split())}") from None
    if not has_key:
        raise UserError(f"{key}: wandb has no API key here: run `wandb login`, or set mode=offline")


class WandbSession:
    """A run by its id, which goes on where there is one. Steps that it has already stay as they are.

    W&B drops a line of an earlier step. A validation that comes so late goes with the next line that has
    none, and is plotted over `VALIDATED_STEP`.
    """

    def __init__(self, config: WandbConfig, run: RunFacts) -> None:
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode=config.mode,
            id=run.id,
            name=run.name,
            dir=run.folder,
            config=dict(run.settings),
            resume="allow",
            reinit="create_new",
            allow_val_change=True,
            settings=wandb.Settings(
                # Neither the terminal's lines nor the command's arguments, which may hold signed URLs.
                console="off",
                x_disable_meta=True,
                disable_git=True,
                save_code=False,
                disable_job_creation=True,
                silent=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=CLOSE_SECONDS,
            ),
        )

        self._run.define_metric(VALIDATED_STEP, hidden=True)
        self._run.define_metric(f"{VALIDATION}*", step_metric=VALIDATED_STEP)
        self._last_step = self._run.step - 1
        """The last step that the run has a line of, those of an earlier process too; -1 for none."""
        self._lacks_validation = False
        """Whether the last line can still take a validation."""
        self._validations: deque[dict[str, float]] = deque()
        """Validations that no line has taken yet."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values."""
        line = {name: value for name, value in values.items() if not name.startswith(VALIDATION)}
        validation = {name: value for name, value in values.items() if name.startswith(VALIDATION)}
        if validation:
            self._validations.append({**validation, VALIDATED_STEP: step})
        if line:
            self._write_line(step, line)
        if self._validations and self._lacks_validation:
            self._lacks_validation = False
            self._run.log(self._validations.popleft(), step=self._last_step)

    def _write_line(self, step: int, line: dict[str, float]) -> None:
        if step > self._last_step:
            self._last_step = step
            self._lacks_validation = True
        self._run.log(line, step=step)

    def write_pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log pictures."""
        images: dict[str, wandb.Image] = {}
        for name, picture in pictures.items():
            images[name] = wandb.Image(picture.permute(1, 2, 0).numpy())
        self._run.log(images, step=step)

    def close(self, end: End) -> None:
        """End the run's present part; validations that no line has taken have lines of their own."""
        while self._validations:
            self._last_step += 1
            self._run.log(self._validations.popleft(), step=self._last_step)
        self._run.finish(exit_code=1 if end == "failed" else 0)

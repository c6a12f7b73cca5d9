"""Exit codes of errors: only what may pass is tried again, and what a user can mend is one line."""

import shutil
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from dualtoken.infra.ray_errors import ProcessesDied
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import ExitCode, UnitsFailed, UserError, exit_code
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from tests.helpers.tiny_run import LoadTiny, planned


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "No such file", "x"), ExitCode.BUG),
        (IsADirectoryError("x"), ExitCode.BUG),
        (NotADirectoryError("x"), ExitCode.BUG),
        (FileExistsError("x"), ExitCode.BUG),
        (KeyError("x"), ExitCode.BUG),
        (FileNotFoundError("The specified bucket does not exist"), ExitCode.CONFIGURATION),
        (UserError("x"), ExitCode.CONFIGURATION),
        (NoCredentialsError(), ExitCode.CONFIGURATION),
        (PermissionError(13, "Permission denied", "x"), ExitCode.CONFIGURATION),
        (OSError(30, "Read-only file system"), ExitCode.CONFIGURATION),
        (OSError(28, "No space left"), ExitCode.TEMPORARY),
        (MemoryError(), ExitCode.TEMPORARY),
        (ConnectionError("x"), ExitCode.TEMPORARY),
        (TimeoutError("x"), ExitCode.TEMPORARY),
        (ProcessesDied("x"), ExitCode.TEMPORARY),
        (EndpointConnectionError(endpoint_url="http://x"), ExitCode.TEMPORARY),
    ],
    ids=repr,
)
def test_each_kind_of_error_has_its_code(error: Exception, code: ExitCode) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("step", "lost", "command"),
    [
        ("download", "00003.tar", "filter"),
        ("download", "00003.parquet", "filter"),
        ("filter", "00003.parquet", "targets"),
    ],
)
def test_a_finished_file_that_is_gone_is_named_with_how_to_bring_it_back(
    step: str, lost: str, command: str, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")))
    made_first = {"filter": "score"}.get(command, command)
    damaged = planned(recipe, step, "tiny-train").job
    unmade = planned(recipe, made_first, "tiny-train").job
    assert damaged is not None
    assert unmade is not None
    shutil.rmtree(unmade.folder)
    (Path(damaged.folder) / lost).unlink()
    with pytest.raises(UnitsFailed) as error:
        run_command(command, recipe, LocalExecutor(), lambda _: None)
    assert str(error.value) == (
        f"1 of 10 units failed; {unmade.stage} tiny-train 00003: {damaged.folder}/{lost} is gone, "
        f"its stage is finished: run `dualtoken verify {damaged.folder} --repair`"
    )
    assert error.value.code == ExitCode.CONFIGURATION


def test_scores_that_are_gone_are_named_by_the_decision(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")))
    scores = planned(recipe, "score", "tiny-train").job
    decision = planned(recipe, "filter", "tiny-train").job
    assert scores is not None
    assert decision is not None
    shutil.rmtree(decision.folder)
    (Path(scores.folder) / "00003.parquet").unlink()
    with pytest.raises(UnitsFailed, match=f"filter tiny-train all: {scores.folder}/00003.parquet is gone"):
        run_command("filter", recipe, LocalExecutor(), lambda _: None)


@pytest.mark.parametrize(
    ("command", "key", "override"),
    [
        ("teacher", "teacher.learning_rate", "teacher.learning_rate=1.0e+38"),
        ("train", "train.learning_rate", "train.losses.semantic=1.0e+38"),
    ],
)
def test_a_training_that_diverges_names_the_key_to_lower(
    command: str, key: str, override: str, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    recipe = load_tiny(Path(shutil.copytree(finished.root, tmp_path / "run")), override)
    with pytest.raises(UnitsFailed, match=f"lower {key}") as error:
        run_command(command, recipe, LocalExecutor(), lambda _: None)
    assert error.value.code == ExitCode.CONFIGURATION

"""Downloads of a table behind a signature or a password: it works, and neither is written down."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.run import run_command
from tests.helpers.signed_tables import USER, has_password, has_query, serving_signed_table
from tests.helpers.tiny_run import LoadTiny, planned, planned_job

ROWS = 2
SOURCE = "corpora.tiny-train.source={{kind: urls, table: '{table}'}}"


def load(load_tiny: LoadTiny, root: Path, table: str) -> Recipe:
    return load_tiny(root, SOURCE.format(table=table), "download.allow_private_addresses=true")


def download(recipe: Recipe) -> str:
    """Download the signed corpus, and return the lines that tell of it."""
    lines: list[str] = []
    run_command("download", recipe, LocalExecutor(), lines.append, ["tiny-train"])
    return "\n".join(lines)


def files_with(root: Path, secret: str) -> list[Path]:
    return [file for file in root.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


def test_a_signature_stands_nowhere_and_a_renewed_one_gives_the_same_folder(
    tmp_path: Path, load_tiny: LoadTiny
) -> None:
    with serving_signed_table(
        lambda head: has_query("S1GNED")(head) or has_query("RENEWED")(head), ROWS
    ) as server:
        query = "t.csv?X-Amz-Credential=KEY/2026/s3&X-Amz-Signature="
        recipe = load(load_tiny, tmp_path, f"{server.base}/{query}S1GNED")
        output = download(recipe)
        folder = planned_job(recipe, "download", "tiny-train").folder
        assert planned(recipe, "download", "tiny-train").manifest
        renewed = load(load_tiny, tmp_path, f"{server.base}/{query}RENEWED")
        assert planned_job(renewed, "download", "tiny-train").folder == folder
    for secret in ("S1GNED", "RENEWED", "X-Amz"):
        assert secret not in output
        assert files_with(tmp_path, secret) == []
    # What a row's own URL holds is data, and stays.
    assert Path(folder, "00000.parquet") in files_with(tmp_path, "token=of-a-row")
    assert not any(file.name == "stage.json" for file in files_with(tmp_path, "of-a-row"))


def test_a_password_stands_nowhere(tmp_path: Path, load_tiny: LoadTiny) -> None:
    with serving_signed_table(has_password("PASSW0RD"), ROWS) as server:
        table = server.base.replace("://", f"://{USER}:PASSW0RD@") + "/t.csv"
        output = download(load(load_tiny, tmp_path, table))
    assert "PASSW0RD" not in output
    assert files_with(tmp_path, "PASSW0RD") == []


@pytest.mark.parametrize("is_allowed", [has_query("ANOTHER"), has_password("ANOTHER")])
def test_a_refused_signature_is_named_by_its_key_and_not_shown(
    tmp_path: Path, load_tiny: LoadTiny, is_allowed: Callable[[str], bool]
) -> None:
    with serving_signed_table(is_allowed, ROWS) as server:
        table = server.base.replace("://", f"://{USER}:PASSW0RD@") + "/t.csv?Signature=S1GNED"
        with pytest.raises(UserError) as refused:
            download(load(load_tiny, tmp_path, table))
    message = str(refused.value)
    assert message.startswith(f"corpora.tiny-train.source.table='{server.base}/t.csv'")
    assert "S1GNED" not in message
    assert "PASSW0RD" not in message

"""What a report is made of."""

from pathlib import Path

from dualtoken.pipelines.evaluation.report import shown_recipe
from tests.helpers.tiny_run import LoadTiny


def test_the_recipe_in_a_report_shows_no_secret_of_a_url(tmp_path: Path, load_tiny: LoadTiny) -> None:
    table = "https://reader:PASSW0RD@host/t.csv?Signature=S1GNED"
    shown = shown_recipe(load_tiny(tmp_path, f"corpora.tiny-train.source={{kind: urls, table: '{table}'}}"))
    assert "table: https://host/t.csv\n" in shown
    assert "PASSW0RD" not in shown
    assert "S1GNED" not in shown

"""A saved unified model, as a user calls it: `generate`, `ask`, `describe`."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.model.config.drawing import DrawingConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from tests.helpers.command_line import printed_lines
from tests.helpers.tiny_run import TINY, planned_job


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "teal").save(file)
    return file


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in folder.glob("*.png")}


def test_captions_are_drawn_each_the_same_in_any_batch(finished: Recipe, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a small red ring at the top left\n\na blue square\n", encoding="utf-8")
    model = (TINY, "--root", finished.root)
    options = ("--prompts", prompts, "--num-images", 2, "--seed", 3)
    lines = printed_lines("generate", *model, *options, "--out", tmp_path / "out", "--batch-size", 4)
    assert lines == [f"4 images, {tmp_path / 'out/sheet.png'}"]
    drawn = pixels(tmp_path / "out")
    assert sorted(drawn) == ["0000-00.png", "0000-01.png", "0001-00.png", "0001-01.png", "sheet.png"]
    assert (tmp_path / "out/prompts.tsv").read_text() == (
        "0000\ta small red ring at the top left\n0001\ta blue square\n"
    )
    printed_lines("generate", *model, *options, "--out", tmp_path / "alone", "--batch-size", 1)
    assert pixels(tmp_path / "alone") == drawn
    printed_lines("generate", *model, *options[:-1], 4, "--out", tmp_path / "other")
    assert pixels(tmp_path / "other") != drawn


def test_a_model_draws_its_own_way_where_nothing_else_is_said(finished: Recipe, tmp_path: Path) -> None:
    folder = planned_job(finished, "mllm").folder
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    values = json.loads((changed / "config.json").read_text())
    assert values["drawing"] == DrawingConfig().model_dump()
    values["drawing"] |= {"guidance_scale": 7.0, "temperature": 0.2, "top_k": 3, "unread_share": 0.5}
    values["drawing"]["shared_noise"] = True
    (changed / "config.json").write_text(json.dumps(values))
    caption = ("--prompt", "a small red ring at the top left")

    def drawn(model: str | Path, *options: object) -> dict[str, bytes]:
        out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
        printed_lines("generate", model, *caption, *options, "--out", out)
        return pixels(out)

    by_options = ("--guidance-scale", 7, "--temperature", 0.2, "--top-k", 3, "--unread-share", 0.5)
    own = drawn(changed)
    assert own == drawn(folder, *by_options, "--shared-noise")
    assert own != drawn(folder, *by_options)
    for option in range(0, len(by_options), 2):
        others = (*by_options[:option], *by_options[option + 2 :])
        assert own != drawn(folder, *others, "--shared-noise"), by_options[option]
    defaults = ("--guidance-scale", 3, "--temperature", 1, "--top-k", 0, "--unread-share", 0, "--own-noise")
    assert drawn(folder) == drawn(changed, *defaults)


def test_a_question_is_answered_and_images_are_described(finished: Recipe, picture: Path) -> None:
    folder = planned_job(finished, "mllm").folder
    assert len(printed_lines("ask", folder, picture, "what shape is at the top left?")) == 1
    lines = printed_lines("describe", folder, picture, picture)
    assert [line.partition(":")[0] for line in lines] == [str(picture)] * 2


def error_of(*arguments: object) -> str:
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(ended.exception, UserError), ended.output
    assert "\n" not in str(ended.exception)
    return str(ended.exception)


def test_mistakes_are_told_in_one_line(finished: Recipe, picture: Path, tmp_path: Path) -> None:
    model = planned_job(finished, "mllm").folder
    out = ("--out", tmp_path / "out")
    assert error_of("generate", model, *out) == "no caption is given: use --prompt TEXT or --prompts FILE"
    missing = tmp_path / "missing.txt"
    assert f"--prompts {missing} cannot be read" in error_of("generate", model, "--prompts", missing, *out)
    prompt = ("--prompt", "a red ring")
    said = error_of("generate", model, *prompt, "--temperature", -1, *out)
    assert said == "temperature=-1.0: give 0 or more"
    said = error_of("generate", model, *prompt, "--guidance-scale", -1, *out)
    assert said == "guidance_scale=-1.0: give 0 or more, 1 for none"
    said = error_of("generate", model, *prompt, "--unread-share", 2, *out)
    assert said == "unread_share=2.0: give a share from 0 to 1"
    long = "word " * 40000
    assert "positions, the model reads 32768: shorten it" in error_of(
        "generate", model, "--prompt", long, *out
    )
    tokenizer = planned_job(finished, "train").folder
    assert "name the folder of a unified model" in error_of("generate", tokenizer, *prompt, *out)
    assert "QUESTION is empty" in error_of("ask", model, picture, "  ")
    assert "there is no such file" in error_of("ask", model, tmp_path / "none.png", "what?")
    (tmp_path / "text.png").write_text("no image")
    assert "is no image that can be read" in error_of("ask", model, tmp_path / "text.png", "what?")


def test_a_model_without_its_tokenizers_is_refused(finished: Recipe, picture: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planned_job(finished, "mllm").folder, tmp_path / "model"))
    shutil.rmtree(folder / "vision_tokenizer")
    assert "has no vision_tokenizer: fetch the whole folder" in error_of("describe", folder, picture)
    shutil.copytree(planned_job(finished, "train").folder, folder / "vision_tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no text tokenizer" in error_of("describe", folder, picture)

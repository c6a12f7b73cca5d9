"""What a user may name in place of a fingerprint's folder, for every command that takes one."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.jobs.stage_places import RecipeOptions, find_model, find_stage
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.receipts import STAGE_FILE
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.tokens.reader import TokenDataset
from tests.helpers.command_line import printed_lines
from tests.helpers.tiny_run import TINY, LoadTiny, planned_job, tokens_job

NONE = RecipeOptions()


def under(recipe: Recipe, corpora: Sequence[str] | None = None) -> RecipeOptions:
    return RecipeOptions(root=recipe.root, corpora=corpora)


def test_a_stages_folder_is_found_by_itself_by_a_folder_above_it_and_by_its_recipe(finished: Recipe) -> None:
    folder = tokens_job(finished).folder
    above = [folder, f"{folder}/", folder.rpartition("/")[0], f"{finished.root}/tiny-train"]
    found = [find_stage(place, "pretokenize", NONE).url for place in above]
    found.append(find_stage(TINY, "pretokenize", under(finished, ["tiny-train"])).url)
    assert set(found) == {folder}


def test_of_several_folders_all_are_named_in_one_line(finished: Recipe) -> None:
    folders = [tokens_job(finished, corpus).folder for corpus in ("tiny-heldout", "tiny-train")]
    with pytest.raises(UserError) as below_root:
        find_stage(finished.root, "pretokenize", NONE)
    assert str(below_root.value) == (
        f"{finished.root} has 2 folders of pretokenize: give one of {folders[0]}, {folders[1]}"
    )
    with pytest.raises(UserError, match=r"^tiny has 2 folders of pretokenize: .* with --corpus$"):
        find_stage(TINY, "pretokenize", under(finished))


def test_of_several_folders_the_finished_one_is_meant(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    folder = Path(tokens_job(load_tiny(tmp_path / "copy")).folder)
    begun = shutil.copytree(folder, folder.with_name("0123456789ab"))
    (begun / "manifest.json").unlink()
    assert find_stage(str(folder.parent), "pretokenize", NONE).url == str(folder)
    # Alone, the unfinished one is found, and the command says so.
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=f"{begun} has no manifest.json: it is unfinished; run"):
        printed_lines("export-tokens", folder.parent, "--format", "parquet", "--out", tmp_path / "out")


def test_what_lies_in_a_folder_without_the_stage_is_named(finished: Recipe, tmp_path: Path) -> None:
    shards = planned_job(finished, "download", "tiny-train").folder
    for place in (shards, shards.rpartition("/")[0]):
        with pytest.raises(
            UserError,
            match=f"^{place} holds nothing of the stage pretokenize, only of download tiny-train: "
            "give <corpus>/tokens/<fingerprint>, a folder above it, or a recipe$",
        ):
            find_stage(place, "pretokenize", NONE)
    with pytest.raises(UserError, match=f"^{tmp_path} is no stage's folder and holds none: give "):
        find_stage(str(tmp_path), "pretokenize", NONE)


def test_one_folder_that_cannot_be_read_hides_no_other(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    shutil.copytree(finished.root, tmp_path / "copy")
    recipe = load_tiny(tmp_path / "copy")
    damaged = Path(planned_job(recipe, "download", "tiny-train").folder)
    (damaged / STAGE_FILE).write_text("{")
    folder = tokens_job(finished).folder.replace(finished.root, recipe.root)
    assert find_stage(f"{recipe.root}/tiny-train", "pretokenize", NONE).url == folder
    with pytest.raises(UserError, match=r"stage\.json cannot be read: it is damaged"):
        find_stage(str(damaged), "pretokenize", NONE)


def test_a_recipe_that_has_not_run_names_what_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"tiny has no <corpus>/tokens/<fingerprint> below {tmp_path}: run `dualtoken scenes`",
    ):
        find_stage(TINY, "pretokenize", RecipeOptions(root=str(tmp_path)))


def test_what_is_neither_folder_nor_recipe_is_said_to_be_that(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="scens is neither a folder nor a recipe: did you mean the recipe scenes"
    ):
        find_stage("scens", "pretokenize", NONE)
    with pytest.raises(UserError, match=f"{tmp_path} is no recipe, and takes no --set and no --root"):
        find_stage(str(tmp_path), "pretokenize", RecipeOptions(["train.steps=3"], "root"))


def test_a_folder_named_like_a_shipped_recipe_hides_it_only_if_it_holds_stages(
    tmp_path: Path, finished: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    with pytest.raises(UserError, match=r"^scenes has no .* below .*/data: run `dualtoken scenes` first$"):
        find_stage("scenes", "pretokenize", NONE)
    job = tokens_job(finished)
    shutil.copytree(job.folder, tmp_path / "scenes/tokens" / job.fingerprint)
    assert find_stage("scenes", "pretokenize", NONE).url == f"{tmp_path}/scenes/tokens/{job.fingerprint}"


def test_a_trained_tokenizer_is_found_likewise_and_a_hubs_name_is_left_alone(
    finished: Recipe, tmp_path: Path
) -> None:
    folder = planned_job(finished, "train").folder
    places = [
        (folder, NONE),
        (f"{finished.root}/models", NONE),
        (finished.root, NONE),
        (TINY, under(finished)),
    ]
    for place, options in places:
        with find_model(place, options) as model:
            assert model == folder
    with find_model("owner/name", NONE) as model:
        assert model == "owner/name"
    shutil.copytree(finished.root, tmp_path / "copy")
    copied = Path(folder.replace(finished.root, str(tmp_path / "copy")))
    (copied / "manifest.json").unlink()
    with (
        pytest.raises(UserError, match="it is unfinished; run `dualtoken train` again"),
        find_model(str(copied.parent), NONE),
    ):
        pass


def test_every_command_on_a_finished_stage_takes_a_recipe(finished: Recipe, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    recipe = (TINY, "--root", finished.root)
    corpus = ("--corpus", "tiny-train")
    images = (tmp_path / "red.png", "--out")
    calls = {
        "card": (*recipe, *corpus),
        "inspect": (*recipe, *corpus, "--shard", "00003", "--row", 0),
        "export-tokens": (*recipe, *corpus, "--format", "parquet", "--out", tmp_path / "exported"),
        "verify": recipe,
        "forget": (*recipe, "--url-host", "img.example.org"),
        "tokenize": (TINY, *images, tmp_path / "codes.safetensors", "--root", finished.root),
        "reconstruct": (TINY, *images, tmp_path / "pictures", "--root", finished.root),
    }
    printed = {command: printed_lines(command, *arguments) for command, arguments in calls.items()}
    assert printed["inspect"][0].startswith(f"{tokens_job(finished).folder}/data/00003.arrow: ")
    # A recipe's own folders alone, each of them.
    assert len(printed["verify"]) == 18
    assert all(line.endswith(", all as committed") for line in printed["verify"])
    assert printed["tokenize"] == [f"1 image, {tmp_path}/codes.safetensors"]


def test_forget_takes_a_root_and_names_it_where_a_folder_below_is_given(finished: Recipe) -> None:
    host = ("--url-host", "img.example.org")
    by_root = printed_lines("forget", finished.root, *host)
    assert sorted(by_root) == sorted(printed_lines("forget", TINY, "--root", finished.root, *host))
    ended = CliRunner().invoke(app, ["forget", f"{finished.root}/tiny-train", *host])
    assert str(ended.exception) == (
        f"{finished.root}/tiny-train is no run's root: give {finished.root}, or a recipe"
    )


def test_a_reader_of_the_library_is_told_what_a_folder_is(finished: Recipe, tmp_path: Path) -> None:
    job = tokens_job(finished)
    with pytest.raises(
        ValueError, match=f"/tiny-train/tokens is no token dataset but holds {job.fingerprint}: give <corpus>"
    ):
        TokenDataset(job.folder.rpartition("/")[0])
    with pytest.raises(ValueError, match=f"{tmp_path} holds no token dataset: give <corpus>"):
        TokenDataset(str(tmp_path))

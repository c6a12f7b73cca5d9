"""Recipes: shipped ones load, overrides apply, and each mistake is one line naming key, value and fix."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.pipelines.config.parse import load_recipe, shipped_recipes
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.stages import get_stage
from tests.helpers.tiny_run import LoadTiny


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert load_recipe(name).name == name


def test_shipped_recipes_are_found_from_any_folder(tmp_path: Path) -> None:
    code = "from dualtoken.pipelines.config.parse import load_recipe; print(load_recipe('scenes').name)"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert shown.stdout == "scenes\n"


def test_an_override_reaches_mappings_lists_and_new_keys() -> None:
    recipe = load_recipe("scenes", ["train.steps=7", "filter.rules.0.pixels=9", "train.losses.semantic=0.5"])
    assert recipe.train.steps == 7
    assert recipe.filter.rules[0].pixels == 9  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe.train.losses.semantic == 0.5


MISTAKES = {
    "cluster.min_workers=3": "cluster: min_workers=3 is over max_workers=2: lower it",
    "train.stepz=4": "train.stepz=4 is no key of a recipe: did you mean steps?",
    "filter.rules.0.pixel=3": "filter.rules.0.pixel=3 is no key of a recipe: did you mean pixels?",
    "corpora.scenes-train.source.spilt=train": (
        "corpora.scenes-train.source.spilt='train' is no key of a recipe: did you mean split?"
    ),
    "train.steps=abc": "train.steps='abc': should be a valid integer, unable to parse string as an integer",
    "train.steps=0": "train.steps=0: should be greater than 0",
    "teacher.kind=x": "teacher.kind='x': set it to one of 'train', 'open_clip', 'local'",
    "heldout.corpus=foo": "heldout.corpus=foo is no corpus: set it to one of scenes-train, scenes-heldout",
    "tokenizer.pixel_block=9": (
        "tokenizer: pixel_block=9, semantic_block=3, tower.depth=4: "
        "set pixel_block <= semantic_block < tower.depth"
    ),
    "tokenizer.decoder={latent_size: 8, patch_size: 8}": (
        "tokenizer.decoder.patch_size=8 is no key of a recipe: "
        "it belongs to another kind of tokenizer.decoder: set tokenizer.decoder.kind to that one"
    ),
    "tokenizer.tower={patch_size: 8, width: 96, depth: 6, num_head: 3, num_heads: 3, mlp_width: 9}": (
        "tokenizer.tower.num_head=3 is no key of a recipe: did you mean num_heads?"
    ),
    "tokenizer.tower={patch_size: 8, width: 96, depth: 1, num_heads: 3, mlp_width: 9}": (
        "tokenizer.tower.depth=1: should be greater than or equal to 2"
    ),
    "tokenizer.tower={model: ViT-L-16-SigLIP-265}": (
        "tokenizer.tower.model: model=ViT-L-16-SigLIP-265 is unknown to open_clip: "
        "did you mean ViT-L-16-SigLIP-256?"
    ),
    "train=3": (
        "train=3 is no group of keys: set one of train.accumulate_steps, train.batch_size, train.betas, ..."
    ),
    "corpora.scenes-trian.source.num_images=3": (
        "corpora.scenes-trian.source.kind is missing: set it, or did you mean corpora.scenes-train?"
    ),
    "download.encode_quality=50": (
        "download: encode_quality=50 with encode_format=png: PNG takes a compression of 0 to 9"
    ),
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_one_line_with_key_value_and_fix(override: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("scenes", [override])
    assert str(error.value) == f"scenes: {MISTAKES[override]}"


@pytest.mark.parametrize(
    "override", ["nonsense", "train.steps.x=3", "filter.rules.9.pixels=3", "=3", "train.steps={"]
)
def test_an_override_that_cannot_apply_says_how_to_write_it(override: str) -> None:
    with pytest.raises(UserError, match="--set") as error:
        load_recipe("scenes", [override])
    assert "\n" not in str(error.value)


def test_a_missing_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"paper-256, .*paper-384, .*scenes, scenes-large, urls"):
        load_recipe("nowhere.yaml")
    with pytest.raises(UserError, match=r"^recipe 'scnes' is no file: did you mean scenes\?"):
        load_recipe("scnes")


def test_what_only_changes_how_a_stage_runs_is_no_part_of_its_identity() -> None:
    plain = load_recipe("scenes")
    run_otherwise = ["train.checkpoint_every=7", "download.concurrency=3", "root=elsewhere"]
    assert load_recipe("scenes", run_otherwise).identity() == plain.identity()
    assert load_recipe("scenes", ["train.seed=1"]).identity() != plain.identity()


def test_the_published_384_pixel_model_has_27_by_27_tokens() -> None:
    tower = {"patch_size": 14, "width": 1152, "depth": 27, "num_heads": 16, "mlp_width": 4304}
    config = TokenizerConfig.model_validate(
        {
            "image_size": 384,
            "tower": tower,
            "pixel_block": 6,
            "semantic_block": 26,
            "pixel": {},
            "semantic": {},
            "decoder": {},
        }
    )
    assert config.grid_size == 27


@pytest.mark.parametrize(
    ("overrides", "wants", "lower"),
    [
        (["train.cpus_per_worker=3"], "train.cpus_per_worker=3 wants 3 CPUs", "train.cpus_per_worker"),
        (
            ["train.num_workers=4"],
            "train.num_workers=4 times train.cpus_per_worker=1 wants 4 CPUs",
            "train.num_workers or train.cpus_per_worker",
        ),
    ],
)
def test_a_cluster_too_small_for_its_training_is_refused_by_key(
    overrides: list[str], wants: str, lower: str, load_tiny: LoadTiny, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        load_tiny(tmp_path, *overrides)
    assert str(error.value) == f"{wants}, cluster.num_cpus=2: raise it, or lower {lower}"
    assert load_tiny(tmp_path, *overrides, "cluster.address=10.0.0.5:6379")
    assert load_tiny(tmp_path, *overrides, "cluster.num_cpus=null")


def test_what_a_stage_asks_for_is_told_by_the_keys_that_ask(load_tiny: LoadTiny, tmp_path: Path) -> None:
    recipe = load_tiny(tmp_path, "train.use_gpu=true", "cluster.gpus_per_worker=0.5")
    expected = {
        "train": (1, 1, "train.use_gpu=true"),
        "teacher": (1, 1, "train.use_gpu=true"),
        "score": (5, 0.5, "cluster.gpus_per_worker=0.5"),
        "download": (1, 0, "cluster.gpus_per_worker=0"),
    }
    for stage, asked in expected.items():
        cpu, gpu = get_stage(stage).resources(recipe).demands
        assert (cpu.amount, gpu.amount, gpu.keys) == asked


def test_a_relative_root_is_one_folder_wherever_a_worker_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("scenes").root == str(tmp_path / "data")
    assert load_recipe("scenes", ["root=../runs/"]).root == str(tmp_path.parent / "runs")
    for place in ("/runs/a", "s3://bucket/runs", "simplecache::s3://bucket/runs"):
        assert load_recipe("scenes", [f"root={place}"]).root == place
    recipe = load_recipe("scenes")
    monkeypatch.chdir("/")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_each_local_place_is_absolute_and_counts_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = (
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "config.json",
        "model.safetensors",
        "vgg.pth",
        "t.csv",
        "00000.tar",
    )
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("url,caption\nhttp://host/1.png,c\n")
        pq.write_table(pa.table({"status": ["success"]}), folder / "00000.parquet")
    settings = [
        "corpora={web: {source: {kind: urls, table: t.csv}}, there: {source: {kind: shards, folder: .}}}",
        "heldout.corpus=there", "teacher={kind: local, folder: .}", "train.start_from=.",
        "train.perceptual={kind: lpips, backbone: ./vgg.pth, heads: ./vgg.pth}",
    ]  # fmt: skip
    decided = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        monkeypatch.chdir(folder)
        recipe = load_recipe("scenes", settings)
        monkeypatch.chdir("/")
        places = re.findall(r'"(/[^"]*)"', recipe.model_dump_json(exclude={"root"}))
        assert Counter(places) == {str(folder): 3, str(folder / "t.csv"): 1, str(folder / "vgg.pth"): 2}
        of_folder = []
        for stage in ("download", "teacher", "train"):
            for corpus in recipe.corpora:
                of_folder.append(get_stage(stage).settings(recipe, corpus))
        decided.append(of_folder)
    assert decided[0] == decided[1]


def test_a_relative_root_is_refused_in_a_ray_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert load_recipe("scenes").root.endswith("/data")  # an address alone is no job
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for settings in ([], ["root=runs/a"]):
        with pytest.raises(
            UserError, match=r"^root='(data|runs/a)' in a Ray job .*: set --root to a URL or a full path$"
        ):
            load_recipe("scenes", settings)
    for place in ("/runs/a", "s3://bucket/runs"):
        assert load_recipe("scenes", [f"root={place}"]).root == place


@pytest.mark.parametrize(
    ("settings", "gpus", "cpus"),
    [((), 0, 1), ((), 1, 5), ((), 0.5, 5), (("decode_threads=7",), 1, 8), (("decode_threads=7",), 0, 1)],
)
def test_a_worker_with_a_gpu_asks_for_the_cpus_that_its_decoding_keeps_busy(
    settings: tuple[str, ...], gpus: float, cpus: int
) -> None:
    config = load_recipe("scenes", [f"pretokenize.{setting}" for setting in settings]).pretokenize
    assert config.cpus(gpus) == cpus

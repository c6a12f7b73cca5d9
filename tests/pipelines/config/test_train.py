"""Settings of training: a stage's own weights, what is refused, and files that count by their content."""

from pathlib import Path

import pytest
import yaml

from dualtoken.model.config.training import LpipsConfig, NoPerceptual
from dualtoken.pipelines.config.engine import EngineConfig
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.resources import teacher_training, tokenizer_training
from dualtoken.pipelines.config.train import TrainConfig
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.stages import get_stage
from dualtoken.pipelines.training.perceptual import open_perceptual


def test_a_stage_brings_the_released_weights_and_a_recipe_may_change_them() -> None:
    one = load_recipe("scenes", ["train.stage=1"]).train.losses
    zero = load_recipe("scenes", ["train.stage=0", "train.losses.commitment=1"]).train.losses
    two = load_recipe("scenes", ["train.stage=2", "train.start_from=there"]).train.losses
    assert one.model_dump() == {"reconstruction": 5.0, "semantic": 5.0, "pooled": 1.0, "commitment": 5.0}
    assert zero.model_dump() == {"reconstruction": 5.0, "semantic": 0.0, "pooled": 5.0, "commitment": 1.0}
    assert two.model_dump() == {"reconstruction": 0.0, "semantic": 1.0, "pooled": 5.0, "commitment": 5.0}


def test_perceptual_is_none_or_a_mapping() -> None:
    assert load_recipe("scenes").train.perceptual == NoPerceptual(kind="none")
    assert load_recipe("scenes", ["train.perceptual=none"]).train.perceptual == NoPerceptual(kind="none")
    given = load_recipe("scenes", ["train.perceptual={kind: lpips, backbone: vgg.pth}"]).train.perceptual
    assert given == LpipsConfig(kind="lpips", weight=1.0, backbone="vgg.pth")


MISTAKES = {
    ("train.parallel=fsdp2", "train.gan={}"): (
        "train: parallel=fsdp2 shards the decoder's last layer, whose gradients weigh the gan: "
        "set parallel=ddp or gan=null"
    ),
    ("train.min_workers=2",): ("train: min_workers=2 is over num_workers=1: lower it, or raise num_workers"),
    ("train.max_gradient_spike=1",): "train.max_gradient_spike=1: should be greater than 1",
    ("train.keep_best={metric: validation_psnr}",): (
        "train: keep_best.metric=validation_psnr is measured every validate_every=0 steps: "
        "set validate_every so that it divides checkpoint_every=100"
    ),
    ("train.keep_best={metric: validation_psnr}", "train.validate_every=30"): (
        "train: keep_best.metric=validation_psnr is measured every validate_every=30 steps: "
        "set validate_every so that it divides checkpoint_every=100"
    ),
    ("train.profile=5",): (
        "train.profile: '5' is no range of steps: write START:STOP, "
        "such as 20:25 for the five from step 20 on"
    ),
    ("train.profile=7:7",): (
        "train.profile: '7:7' is no range of steps: write START:STOP, "
        "such as 20:25 for the five from step 20 on"
    ),
    ("train.log_images_every=-1",): "train.log_images_every=-1: should be greater than or equal to 0",
    ("train.keep_checkpoints=0",): "train.keep_checkpoints=0: should be greater than 0",
    ("train.keep_best={metric: loss, mod: max}",): (
        "train.keep_best.mod='max' is no key of a recipe: did you mean mode?"
    ),
    ("train.perceptual=vgg",): "train.perceptual.kind='vgg': set it to one of 'none', 'lpips'",
    (
        "train.perceptual={kind: lpips, wait: 2}",
    ): "train.perceptual.wait=2 is no key of a recipe: did you mean weight?",
    ("train.stage=3",): "train.stage=3: should be 0, 1 or 2",
    ("train.stage=2",): "train: stage=2 refines a trained tokenizer: set start_from to its folder",
    (
        "train.stage=2",
        "train.gan={}",
    ): "train: stage=2 leaves pictures as they are: set losses.reconstruction=0, perceptual=none, gan=null",
    (
        "train.gan={}",
        "train.losses.reconstruction=0",
    ): "train: gan weighs its loss against that of pictures: set losses.reconstruction above 0",
    ("train.memory_format=channels_last",): (
        "train: memory_format=channels_last is no faster on a CPU: "
        "set use_gpu=true or memory_format=contiguous"
    ),
    ("train.random_crop={}",): (
        "train.random_crop crops anew each time, "
        "targets.dense=true says what the teacher saw once: set it to false"
    ),
    ("train.gan.width=48",): "train.gan.width=48: should be a multiple of 32",
    (
        "train.accumulate_steps=3",
    ): "train: batch_size=16 is no multiple of num_workers=1 times accumulate_steps=3: make it one of 3",
    ("tokenizer.shared_codebook=true",): (
        "tokenizer: shared_codebook=true: make pixel equal to semantic, and pixel_block to semantic_block"
    ),
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_one_line_with_key_value_and_fix(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("scenes", overrides)
    assert str(error.value) == f"scenes: {MISTAKES[overrides]}"


def test_settings_that_came_later_enter_the_fingerprint_only_where_they_are_set() -> None:
    plain = load_recipe("scenes").train.identity()
    compiled = load_recipe("scenes", ["train.compile=true"]).train.identity()
    assert not {"compile", "memory_format", "random_crop"} & plain.keys()
    assert compiled == plain | {"compile": True}


@pytest.mark.parametrize("stage", ["teacher", "train"])
def test_only_the_window_of_the_shuffle_enters_the_fingerprint_and_only_where_it_is_set(stage: str) -> None:
    def settings(*overrides: str) -> object:
        return get_stage(stage).settings(load_recipe("scenes", overrides), None)

    machine = ("reader.decode_threads=3", "reader.cache_gb=1", "reader.check=never", "reader.on_damage=raise")
    assert "reader" not in str(settings())
    assert settings(*machine) == settings()
    assert settings("reader.shuffle_shards=4") != settings()


def test_weights_enter_the_fingerprint_by_content_not_by_name(tmp_path: Path) -> None:
    def settings(part: str, name: str) -> object:
        perceptual = f"train.perceptual={{kind: lpips, {part}: {tmp_path / name}}}"
        return get_stage("train").settings(load_recipe("scenes", [perceptual]), None)

    (tmp_path / "first.pth").write_bytes(b"a")
    (tmp_path / "same.pth").write_bytes(b"a")
    (tmp_path / "changed.pth").write_bytes(b"b")
    assert settings("backbone", "first.pth") == settings("backbone", "same.pth")
    assert settings("backbone", "first.pth") != settings("backbone", "changed.pth")
    with pytest.raises(UserError, match=r"train\.perceptual\.heads='.*gone\.pth' is no file"):
        settings("heads", "gone.pth")


def test_a_start_enters_the_fingerprint_by_content(tmp_path: Path) -> None:
    def settings(folder: Path) -> object:
        return get_stage("train").settings(load_recipe("scenes", [f"train.start_from={folder}"]), None)

    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / "model.safetensors").write_text("weights")
    assert settings(tmp_path / "one") == settings(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_text("other weights")
    assert settings(tmp_path / "one") != settings(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"train\.start_from='.*' has no config\.json: give a tokenizer's folder"
    ):
        settings(tmp_path)


def test_missing_weights_are_the_user_s_to_bring(tmp_path: Path) -> None:
    assert open_perceptual(NoPerceptual(kind="none"), tmp_path) is None
    with pytest.raises(UserError, match=r"^train\.perceptual: LPIPS has no weights at .*gone\.pth"):
        open_perceptual(LpipsConfig(kind="lpips", backbone=str(tmp_path / "gone.pth")), tmp_path)


def test_a_recipe_is_laid_over_its_base(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({"base": "scenes", "name": "mine", "train": {"steps": 7}, "filter": {"rules": []}})
    )
    laid_over = load_recipe(str(file), ["train.seed=3"])
    scenes = load_recipe("scenes", ["train.steps=7", "train.seed=3"])
    assert laid_over.name == "mine"
    assert laid_over.filter.rules == ()
    assert laid_over.train == scenes.train
    assert laid_over.tokenizer == scenes.tokenizer


def test_another_kind_takes_its_base_s_place_whole(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    teacher = {"kind": "local", "folder": "/there"}
    file.write_text(yaml.safe_dump({"base": "scenes", "name": "mine", "teacher": teacher}))
    assert load_recipe(str(file)).teacher.model_dump() == teacher


def test_a_base_that_is_not_shipped_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: scene\nname: mine\n")
    with pytest.raises(
        UserError, match=r"mine\.yaml: base='scene' is no shipped recipe: set it to one of .*scenes"
    ):
        load_recipe(str(file))


def test_the_keys_of_the_fingerprint_and_of_the_report_keep_their_order() -> None:
    assert [*TrainConfig().identity()] == [
        *("use_gpu",),
        *("steps", "batch_size", "learning_rate", "betas", "weight_decay", "warmup_steps", "precision"),
        *("stage", "freeze_tower", "losses", "perceptual", "gan", "weight_ema"),
        *("accumulate_steps", "max_gradient_norm", "seed"),
    ]
    later = {"compile": True, "random_crop": {}, "memory_format": "channels_last", "use_gpu": True}
    keys = [*TrainConfig.model_validate(later).identity()]
    assert keys[7:12] == ["precision", "compile", "memory_format", "random_crop", "stage"]
    teacher = load_recipe("scenes").teacher
    assert [*teacher.identity()] == [
        *("kind", "image_size", "tower", "text", "steps", "batch_size", "optimizer"),
        *("learning_rate", "warmup_steps", "weight_decay", "seed"),
    ]


def test_a_group_has_a_size_that_divides_the_batch_of_the_tokenizer_and_of_the_teacher() -> None:
    recipe = load_recipe("scenes", ["cluster.num_cpus=64", "train.min_workers=2", "train.num_workers=16"])
    assert (recipe.train.batch_size, recipe.train.group_sizes) == (16, (2, 4, 8, 16))
    assert tokenizer_training(recipe).group_sizes == (2, 4, 8, 16)
    odd = load_recipe("scenes", ["teacher.batch_size=99", "cluster.num_cpus=64", "train.num_workers=2"])
    assert teacher_training(odd).group_sizes == (1,)
    assert teacher_training(recipe).demands[0].amount == 2 * recipe.train.cpus_per_worker


def test_how_a_training_runs_decides_no_fingerprint() -> None:
    plain = load_recipe("scenes").train
    keys = ("parallel=fsdp2", "keep_checkpoints=5", "keep_best={metric: loss}", "max_bad_steps=1")
    seconds = ("stop_grace_seconds=1", "hang_timeout_seconds=1", "collective_timeout_seconds=1")
    others = load_recipe("scenes", [f"train.{key}" for key in (*keys, *seconds)]).train
    assert others.identity() == plain.identity()
    assert set(EngineConfig.model_fields).isdisjoint(plain.identity())

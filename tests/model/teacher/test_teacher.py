"""Teachers: folders in open_clip's format, embeddings, targets and training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dualtoken.model.config.teacher import TeacherTrainingConfig
from dualtoken.model.config.tokenizer import TextConfig, TowerConfig
from dualtoken.model.teacher.folder import CONFIG_FILE, WEIGHTS_FILE
from dualtoken.model.teacher.teacher import (
    ImageTeacher,
    Teacher,
    build_teacher,
    export_open_clip,
    load_teacher,
    save_teacher,
    tokenize,
)
from dualtoken.model.teacher.training import TeacherTrainer
from dualtoken.model.vision.siglip_tower import register_tower, tower_name
from dualtoken.model.vision.towers import activation_of, forward_from_block

import open_clip  # isort: skip  (after model.teacher.teacher, which makes it importable)
from open_clip.model import set_model_preprocess_cfg  # isort: skip
from open_clip.tokenizer import SimpleTokenizer  # isort: skip


TRAINING = TeacherTrainingConfig(
    image_size=16,
    tower=TowerConfig(patch_size=5, width=32, depth=3, num_heads=2, mlp_width=48),
    text=TextConfig(context_length=8, width=16, depth=1, num_heads=2),
    steps=30,
    learning_rate=2e-3,
    warmup_steps=2,
    weight_decay=0.01,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    save_teacher(build_teacher(TRAINING), TRAINING, folder)
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(folder)


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(
        0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_a_fresh_teacher_thinks_no_pair_belongs_together_and_knows_places_apart() -> None:
    model = build_teacher(TRAINING)
    assert model.logit_bias is not None
    assert (round(model.logit_scale.exp().item(), 3), model.logit_bias.item()) == (5, -4.5)
    places = model.get_parameter("visual.trunk.pos_embed")[0]
    # Sixteen waves, each a sine and a cosine, at half size.
    assert places.norm(dim=1).tolist() == pytest.approx([2.0] * 9)
    assert len(places.unique(dim=0)) == 9


def test_saving_and_loading_keeps_every_bit(folder: Path, teacher: Teacher) -> None:
    torch.manual_seed(0)
    built = build_teacher(TRAINING).state_dict()
    assert all(torch.equal(tensor, built[name]) for name, tensor in teacher.model.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_open_clip_reads_our_folder_in_another_process(folder: Path, teacher: Teacher) -> None:
    name = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]["vision_cfg"]["timm_model_name"]
    assert name == "dualtoken_vit_p5_16_d3_w32_h2_m48"
    code = (
        "from dualtoken.model.vision.siglip_tower import register_tower\n"
        f"register_tower({name!r})\n"
        "import open_clip\n"
        f"print(open_clip.create_model('local-dir:{folder}').logit_scale.item())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) == pytest.approx(teacher.model.get_parameter("logit_scale").item())


def test_one_pass_gives_embeddings_and_targets(teacher: Teacher, pictures: Tensor) -> None:
    output = teacher.embed_all(pictures, block=2)
    targets = teacher.targets(pictures, block=2)
    assert torch.equal(output.embeddings, teacher.embed_images(pictures))
    assert torch.equal(targets.dense, output.dense)
    assert torch.equal(targets.pooled, output.pooled)
    # The rest of the tower turns the dense targets into the pooled one: what the tokenizer does with its own.
    assert torch.equal(forward_from_block(teacher.trunk, targets.dense, 2), targets.pooled)
    assert torch.equal(teacher.trunk(teacher.transform(pictures)), targets.pooled)
    torch.testing.assert_close(output.embeddings.norm(dim=1), torch.ones(3))


def test_the_image_tower_alone_gives_the_same_targets(teacher: Teacher, pictures: Tensor) -> None:
    alone = ImageTeacher(teacher)
    for found, expected in zip(alone.targets(pictures, 2), teacher.targets(pictures, 2), strict=True):
        assert torch.equal(found, expected)
    weights = sum(parameter.numel() for parameter in alone.parameters())
    assert weights == sum(parameter.numel() for parameter in teacher.trunk.parameters())
    assert weights < sum(parameter.numel() for parameter in teacher.parameters())


def test_text_embeddings_do_not_depend_on_the_batch(teacher: Teacher) -> None:
    both = teacher.embed_texts(["a red circle", "nothing"])
    torch.testing.assert_close(teacher.embed_texts(["nothing"])[0], both[1])
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))


def test_a_teacher_is_frozen(teacher: Teacher, pictures: Tensor) -> None:
    assert not [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    assert not teacher.training
    assert not teacher.targets(pictures, block=1).dense.requires_grad


def test_images_are_normalised_by_the_model_s_own_figures(
    folder: Path, pictures: Tensor, tmp_path: Path
) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    config["preprocess_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 4.0]}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    (tmp_path / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes())
    normalised = load_teacher(tmp_path).transform(pictures)
    torch.testing.assert_close(normalised[:, 2], (pictures[:, 2] / 255 - 0.3) / 4)


def test_an_open_clip_model_is_exported_and_read_back(
    folder: Path, pictures: Tensor, teacher: Teacher, tmp_path: Path
) -> None:
    model_config = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]
    (tmp_path / "tiny-siglip-for-tests.json").write_text(json.dumps(model_config))
    open_clip.add_model_config(tmp_path / "tiny-siglip-for-tests.json")
    export_open_clip("tiny-siglip-for-tests", str(folder / WEIGHTS_FILE), tmp_path / "exported")
    exported = load_teacher(tmp_path / "exported")
    assert torch.equal(exported.embed_texts(["a"]), teacher.embed_texts(["a"]))
    # open_clip's own default figures, since a file of weights brings none.
    assert exported.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    images = exported.transform(pictures)
    assert torch.equal(exported.trunk(images), teacher.trunk(images))


def test_an_exported_tower_computes_as_it_was_trained_where_timm_s_does_not(
    folder: Path, pictures: Tensor, teacher: Teacher, tmp_path: Path
) -> None:
    model_config = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]
    tower = TRAINING.tower.model_copy(update={"activation": "gelu"})
    name = tower_name(tower, TRAINING.image_size)
    register_tower(name)
    model_config["vision_cfg"]["timm_model_name"] = name
    (tmp_path / "tiny-exact-siglip.json").write_text(json.dumps(model_config))
    open_clip.add_model_config(tmp_path / "tiny-exact-siglip.json")
    for shape, activation in (
        (None, "gelu"),
        (TRAINING.tower, "gelu_tanh"),
        (TRAINING.tower.model_copy(update={"depth": 9}), "gelu"),
    ):
        export_open_clip("tiny-exact-siglip", str(folder / WEIGHTS_FILE), tmp_path / "exported", shape)
        exported = load_teacher(tmp_path / "exported")
        assert activation_of(exported.trunk) == activation
        images = exported.transform(pictures)
        assert torch.equal(exported.trunk(images), teacher.trunk(images)) == (activation == "gelu_tanh")


def test_a_folder_without_a_siglip_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"has no {CONFIG_FILE}"):
        load_teacher(tmp_path)
    (tmp_path / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text())
    with pytest.raises(ValueError, match=rf"has no {WEIGHTS_FILE}"):
        load_teacher(tmp_path)
    with pytest.raises(ValueError, match="model=ViT-Z is unknown to open_clip"):
        export_open_clip("ViT-Z", "webli", tmp_path)


def small_open_clip_model(**vision: object) -> open_clip.CustomTextCLIP:
    text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    return open_clip.CustomTextCLIP(
        embed_dim=8,
        vision_cfg={"width": 16, "image_size": 16} | vision,  # pyright: ignore[reportArgumentType]
        text_cfg=text,  # pyright: ignore[reportArgumentType]
    )


def as_teacher(model: open_clip.CustomTextCLIP) -> Teacher:
    set_model_preprocess_cfg(model, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    return Teacher(model, SimpleTokenizer(context_length=8))


@pytest.mark.parametrize("pool", [{"pool_type": "tok"}, {"pool_type": "avg", "final_ln_after_pool": True}])
def test_a_clip_model_is_a_teacher_too(pool: dict[str, object], pictures: Tensor) -> None:
    torch.manual_seed(0)
    clip = as_teacher(small_open_clip_model(layers=3, head_width=8, patch_size=8, **pool))
    output = clip.embed_all(pictures, block=2)
    assert (output.pooled.shape, output.dense.shape) == ((3, 16), (3, 4, 16))
    torch.testing.assert_close(output.embeddings, clip.embed_images(pictures))
    torch.testing.assert_close(clip.project(output.pooled), output.embeddings)
    assert clip.embed_texts(["a", "b"]).shape == (2, 8)


def test_a_tower_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="the image tower is ModifiedResNet: use a plain vision transformer"):
        as_teacher(small_open_clip_model(layers=(1, 1, 1, 1), image_size=32))


def test_images_of_another_size_are_refused(teacher: Teacher) -> None:
    with pytest.raises(ValueError, match="images of 32 pixels, the teacher reads 16"):
        teacher.embed_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_training_learns_which_caption_belongs_to_which_picture() -> None:
    trainer = TeacherTrainer(TRAINING)
    tokens = tokenize(["red", "green", "blue", "white"], TRAINING.text)
    pictures = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    for index, channels in enumerate(([0], [1], [2], [0, 1, 2])):
        pictures[index, channels] = 255
    metrics = [trainer.train_step(pictures, tokens) for _ in range(30)]
    assert metrics[-1].accuracy == 1
    assert metrics[-1].loss < metrics[0].loss
    assert (metrics[0].learning_rate, trainer.step) == (1e-3, 30)


def weight(config: TeacherTrainingConfig) -> Tensor:
    return TeacherTrainer(config).model.get_parameter("text.token_embedding.weight")


def test_a_trainer_s_seed_decides_its_weights_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    first = weight(TRAINING)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(first, weight(TRAINING))
    assert not torch.equal(first, weight(TRAINING.model_copy(update={"seed": 1})))

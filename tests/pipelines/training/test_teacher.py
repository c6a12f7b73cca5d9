"""What a teacher must be for a tokenizer to start from it: here OpenAI's kind of CLIP, by name."""

from pathlib import Path

import pytest
import torch

from dualtoken.model.config.tokenizer import TextConfig, TokenizerConfig, TowerConfig
from dualtoken.model.teacher.teacher import build_teacher, load_teacher, save_open_clip, save_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.towers import forward_taps
from dualtoken.model.vision.transform import normalize
from dualtoken.pipelines.config.parse import load_recipe
from dualtoken.pipelines.config.teacher import TrainedTeacher
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.runtime.stage_settings import teacher_settings
from dualtoken.pipelines.training.teacher import check_teacher

import open_clip  # isort: skip  (after model.teacher.teacher, which makes it importable)

OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def config(**tower: object) -> TokenizerConfig:
    quantizer = {"num_codes": 16, "depth": 2, "width": 8}
    decoder = {
        "latent_size": 7,
        "latent_width": 8,
        "width": 8,
        "multipliers": (1,) * 6,
        "num_res_blocks": 1,
        "norm_groups": 4,
    }
    return TokenizerConfig.model_validate(
        {
            "image_size": 224,
            "tower": {"model": "ViT-S-32-alt", **tower},
            "pixel": quantizer,
            "semantic": quantizer,
            "decoder": decoder,
        }
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    settings = {"model_cfg": open_clip.get_model_config("ViT-S-32-alt"), "preprocess_cfg": OPENAI}
    save_open_clip(model.state_dict(), settings, folder)
    return folder


def test_a_tokenizer_that_starts_from_a_clip_model_sees_what_it_sees(clip: Path) -> None:
    check_teacher(clip, config())
    teacher, tokenizer = load_teacher(clip), DualTokenizer(config()).eval()
    tokenizer.init_tower(teacher.trunk)
    levels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        ours = tokenizer._tap(normalize(levels))[11]
        theirs = forward_taps(teacher.trunk, teacher.transform(levels), [11])[11]
        torch.testing.assert_close(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.prefix, theirs.prefix)
    assert torch.equal(teacher.targets(levels, 11).dense, theirs.tokens)
    assert teacher.embed_texts(["a"]).shape == (1, 256)


def test_an_activation_that_differs_is_refused(tmp_path: Path) -> None:
    shape = TowerConfig(patch_size=56, width=32, depth=2, num_heads=2, mlp_width=48)
    teacher = TrainedTeacher(
        kind="train",
        image_size=224,
        tower=shape,
        text=TextConfig(context_length=8, width=16, depth=1, num_heads=2),
    )
    save_teacher(build_teacher(teacher), teacher, tmp_path)
    decoder = config().decoder.model_copy(update={"norm_groups": 8})
    own = config().model_copy(
        update={"tower": shape, "semantic_block": 1, "pixel_block": 1, "decoder": decoder}
    )
    check_teacher(tmp_path, own)
    with pytest.raises(UserError, match="activation=gelu, the teacher computes gelu_tanh: make them equal"):
        check_teacher(
            tmp_path, own.model_copy(update={"tower": shape.model_copy(update={"activation": "gelu"})})
        )


def test_a_teacher_that_computes_with_another_activation_is_another_one() -> None:
    ours, other = (
        load_recipe("paper-384", [f"tokenizer.tower.activation={name}"]) for name in ("gelu_tanh", "gelu")
    )
    assert (
        teacher_settings(ours, None)
        == teacher_settings(load_recipe("paper-384"), None)
        != teacher_settings(other, None)
    )


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (
            {"model": "ViT-M-32-alt"},
            r"has \(depth, width, image_size\) \(12, 512, 224\), the teacher \(12, 384, 224\)",
        ),
        ({"model": "ViT-S-16-alt"}, "differ in 2 weights, such as conv1.weight: name the same model"),
        ({"mean": (0.5, 0.5, 0.5)}, "expects images of mean and std .* set tower.mean="),
    ],
)
def test_a_tower_that_differs_is_refused_in_one_line(
    clip: Path, tower: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_teacher(clip, config(**tower))
    assert "\n" not in str(error.value)

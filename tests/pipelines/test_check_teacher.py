"""What a teacher must be for a tokenizer to start from it: here OpenAI's kind of CLIP, by name."""

from pathlib import Path

import pytest
import torch

from model.config import TokenizerConfig
from model.images import normalize
from model.teacher import load_teacher, save_open_clip
from model.tokenizer import DualTokenizer
from model.towers import tap
from pipelines.errors import UserError
from pipelines.stages.teacher import check_teacher

import open_clip  # isort: skip  (after model.teacher, which makes it importable)

OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def config(**tower: object) -> TokenizerConfig:
    quantizer = {"num_codes": 16, "depth": 2, "width": 8}
    decoder = {"latent_size": 7, "latent_width": 8, "width": 8, "multipliers": (1,) * 6, "num_res_blocks": 1, "norm_groups": 4}
    return TokenizerConfig.model_validate(
        {"image_size": 224, "tower": {"model": "ViT-S-32-alt", **tower}, "pixel": quantizer, "semantic": quantizer, "decoder": decoder}
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
        theirs = tap(teacher.trunk, teacher.transform(levels), [11])[11]
        torch.testing.assert_close(ours.tokens, theirs.tokens)
        torch.testing.assert_close(ours.prefix, theirs.prefix)
    assert torch.equal(teacher.dense(levels, 11).dense, theirs.tokens)
    assert teacher.embed_texts(["a"]).shape == (1, 256)


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"model": "ViT-M-32-alt"}, r"has \(depth, width, image_size\) \(12, 512, 224\), the teacher \(12, 384, 224\)"),
        ({"model": "ViT-S-16-alt"}, "differ in 2 weights, such as conv1.weight: name the same model"),
        ({"mean": (0.5, 0.5, 0.5)}, "expects images of mean and std .* set tower.mean="),
    ],
)
def test_a_tower_that_differs_is_refused_in_one_line(clip: Path, tower: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_teacher(clip, config(**tower))
    assert "\n" not in str(error.value)

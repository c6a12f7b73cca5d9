"""Hugging Face's SigLIP and open_clip's weights in our towers give the same states and embeddings."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dualtoken.model.convert.siglip import load_siglip, read_weights, tower_weights
from dualtoken.model.convert.siglip_teacher import convert_siglip
from dualtoken.model.teacher.teacher import load_teacher
from dualtoken.model.vision.towers import build_tower_like, forward_taps

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip(
    "transformers", reason="transformers is no part of the installation: pip install dualtoken[dev]"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 5,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 8,
}
TEXT |= {"max_position_embeddings": 6, "bos_token_id": 1, "eos_token_id": 2}


def vision_model(hidden_act: str = "gelu_pytorch_tanh") -> Any:
    torch.manual_seed(0)
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**VISION, hidden_act=hidden_act)
    ).eval()


def loaded_tower(folder: Path) -> Any:
    config, image_size, weights = load_siglip(folder)
    tower = build_tower_like(config, image_size).eval()
    tower.load_state_dict(weights)
    return tower


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A whole model with a tokeniser of five words."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)).eval()
    model.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "blue": 4, "ball": 5}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("hidden_act", ["gelu_pytorch_tanh", "gelu"])
def test_hidden_states_and_pooled_output_are_hugging_face_s(hidden_act: str, tmp_path: Path) -> None:
    model = vision_model(hidden_act)
    images = torch.randn(2, 3, 16, 16)
    model.save_pretrained(tmp_path)
    tower = loaded_tower(tmp_path)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True)
        taps = forward_taps(tower, images, [1, 2, 3])
        for block in (1, 2, 3):
            torch.testing.assert_close(
                taps[block].tokens, expected.hidden_states[block], atol=1e-5, rtol=1e-5
            )
        torch.testing.assert_close(tower(images), expected.pooler_output, atol=1e-5, rtol=1e-5)


def test_the_activation_matters_and_comes_from_the_folder(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 16, 16)
    pooled = []
    for hidden_act in ("gelu_pytorch_tanh", "gelu"):
        model = vision_model(hidden_act)
        for parameter in model.parameters():
            parameter.data *= 4  # small weights would not tell the two apart
        model.save_pretrained(tmp_path)
        pooled.append(loaded_tower(tmp_path)(images))
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def assert_equal_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_names_may_have_a_prefix_or_not(whole: tuple[Path, Any]) -> None:
    folder, model = whole
    with_prefix = tower_weights(read_weights(folder), "with")
    without = tower_weights(model.vision_model.state_dict(), "without")
    assert_equal_weights(with_prefix, without)


def test_a_whole_model_becomes_a_teacher_with_the_same_embeddings(
    whole: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = whole
    convert_siglip(folder, tmp_path)
    teacher = load_teacher(tmp_path)
    levels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    tokens = torch.tensor([[2, 3, 5, 0, 0, 0], [2, 4, 5, 0, 0, 0]])
    with torch.no_grad():
        expected = model(input_ids=tokens, pixel_values=levels / 127.5 - 1)
    torch.testing.assert_close(teacher.embed_images(levels), expected.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        teacher.embed_texts(["a red ball", "a blue ball"]), expected.text_embeds, atol=1e-5, rtol=1e-5
    )
    assert teacher.model.get_parameter("logit_bias").item() == model.logit_bias.item()


def test_open_clip_s_weights_load_from_a_file_or_folder(whole: tuple[Path, Any], tmp_path: Path) -> None:
    convert_siglip(whole[0], tmp_path)
    trunk = load_teacher(tmp_path).trunk.state_dict()
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        weights = tower_weights(read_weights(path), str(path))
        assert_equal_weights(weights, trunk)
    native = {
        "visual.conv1.weight": torch.zeros(1),
        "visual.proj": torch.zeros(1),
        "logit_scale": torch.zeros(1),
    }
    assert tower_weights(native, "native").keys() == {"conv1.weight"}


def test_other_folders_are_refused_by_name(tmp_path: Path, whole: tuple[Path, Any]) -> None:
    vision_model().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())

    def refused(change: dict[str, object]) -> str:
        (tmp_path / "config.json").write_text(json.dumps(saved | change))
        with pytest.raises(ValueError, match=r"\A.+\Z") as error:
            load_siglip(tmp_path)
        return str(error.value)

    assert "model_type=siglip2: give a folder of siglip" in refused({"model_type": "siglip2"})
    assert "hidden_act=relu: only gelu_pytorch_tanh and gelu" in refused({"hidden_act": "relu"})
    assert "layer_norm_eps=1e-05: only 1e-06" in refused({"layer_norm_eps": 1e-5})
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="of an image tower alone"):
        convert_siglip(tmp_path, tmp_path / "out")
    weights = read_weights(whole[0])
    del weights["vision_model.encoder.layers.1.mlp.fc1.bias"]
    with pytest.raises(
        ValueError,
        match=r"lacks 1 weights of SigLIP's image tower, such as encoder\.layers\.1\.mlp\.fc1\.bias",
    ):
        tower_weights(weights, "w")
    with pytest.raises(ValueError, match="holds no image tower, its first key being decoder"):
        tower_weights({"decoder": torch.zeros(1)}, "w")


def test_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b"not tensors"), ("b.pt", b"not a pickle"), ("c.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save({"state_dict": {"x": 3}}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(tmp_path / "d.pt")
    save_file({"module.a": torch.ones(1)}, tmp_path / "e.safetensors")
    assert read_weights(tmp_path / "e.safetensors").keys() == {"a"}


def test_what_stands_in_the_place_of_weights_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.ones(9)}, whole)
    for name, content, named in (
        ("page.pt", b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
        ("page.safetensors", b"<html>", "is a web page"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("empty.safetensors", b"", "is empty"),
        ("cut.safetensors", whole.read_bytes()[:-8], "or a damaged one"),
        ("code.pt", b"cos\nsystem\n(S'true'\ntR.", "holds os.system beside weights"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"\A.*{name} .*{re.escape(named)}.*\Z") as error:
            read_weights(tmp_path / name)
        assert "weights_only" not in str(error.value)


def test_folders_of_no_siglip_are_told_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\A.*config\.json cannot be read.*give a folder of .*SigLIP.*\Z"):
        convert_siglip(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text('{"format": "dualtoken"}')
    with pytest.raises(ValueError, match="--to-reference converts it back"):
        convert_siglip(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("<html>")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        convert_siglip(tmp_path, tmp_path / "out")

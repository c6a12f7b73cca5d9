"""A named trunk from a folder: trained, saved and read in a new process; refused where it does not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualtoken.model.config.mllm import NamedTrunk
from dualtoken.model.mllm.build import build_mllm
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.saved import open_mllm, save_mllm, vision_digest
from dualtoken.model.mllm.text_tokenizer import load_text_tokenizer
from dualtoken.model.mllm.trainer import MllmTrainer
from dualtoken.model.vision.imports import vision_imports
from tests.helpers.tiny_mllm import (
    DESCRIBE,
    DRAW,
    TEXT,
    VISION_SHA256,
    documents,
    packed,
    tiny_config,
    tiny_vision,
)
from tests.helpers.tiny_trunk import SPARE_IDS, TrunkName, tiny_trunk

with vision_imports():
    from transformers import AutoModelForCausalLM

TRUNKS: tuple[TrunkName, ...] = ("qwen2", "llama")
IDS = torch.tensor([[270, 271, 272, 273, 274]])


def named(folder: Path, vision_sha256: str = VISION_SHA256) -> DualTokenForConditionalGeneration:
    text = load_text_tokenizer(folder)
    config = tiny_config(trunk=NamedTrunk(kind="pretrained", model=str(folder)))
    return build_mllm(config, tiny_vision(), vision_sha256, text, seed=2).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trunk_of_a_folder_says_what_it_said_there(name: TrunkName, tmp_path: Path) -> None:
    folder = tiny_trunk(tmp_path / "trunk", name)
    model = named(folder)
    assert logits(model).shape == (1, 5, len(TEXT) + SPARE_IDS)
    alone = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(model), logits(alone), rtol=1e-5, atol=1e-5)
    embeddings = model.get_input_embeddings().get_parameter("weight")
    assert (model.lm_head.weight is embeddings) == (name == "qwen2"), "tied where they were tied"


@pytest.mark.parametrize("name", TRUNKS)
def test_a_trunk_of_a_folder_trains_and_its_model_is_itself_in_a_new_process(
    name: TrunkName, tmp_path: Path
) -> None:
    folder = tiny_trunk(tmp_path / "trunk", name)
    vision = tmp_path / "vision"
    tiny_vision().save_pretrained(vision)
    model = named(folder, vision_digest(vision))
    before = logits(model)
    batch = packed(model, [documents(model, DRAW, DESCRIBE)])
    trainer = MllmTrainer(model, tiny_config(trunk=NamedTrunk(kind="pretrained", model=str(folder))))
    assert trainer.train_step([batch]).loss > 0
    model.eval()
    expected = logits(model)
    assert not torch.allclose(expected, before)
    saved = tmp_path / "saved"
    save_mllm(saved, model, load_text_tokenizer(folder), vision)
    opened = open_mllm(str(saved)).model.state_dict()
    assert all(torch.equal(opened[key], value) for key, value in model.state_dict().items())
    torch.save(expected, tmp_path / "logits.pt")
    for file in folder.iterdir():  # the saved folder is whole
        file.unlink()
    program = (
        "import sys, torch, dualtoken\n"
        "model, processor = dualtoken.open_mllm(sys.argv[1])\n"
        "expected = torch.load(sys.argv[2])\n"
        "torch.set_grad_enabled(False)\n"
        f"found = model(input_ids=torch.tensor({IDS.tolist()})).logits\n"
        "torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(saved), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_trunk_with_fewer_embeddings_than_its_tokenizer_has_ids_is_refused(tmp_path: Path) -> None:
    folder = tiny_trunk(tmp_path / "trunk", "qwen2", vocabulary=len(TEXT) - 1)
    with pytest.raises(ValueError, match=rf"has {len(TEXT)} ids, the trunk {len(TEXT) - 1} embeddings: name"):
        named(folder)


def test_a_vocabulary_without_the_markers_is_refused(tmp_path: Path) -> None:
    folder = tiny_trunk(tmp_path / "trunk", "llama")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|image_pad|>", "<|another|>"))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|image_pad|>", "<|another|>"))
    with pytest.raises(ValueError, match=r"the vocabulary of .* lacks <\|image_pad\|>: name a trunk with"):
        named(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_a_folder_brings_never_runs(file: str, tmp_path: Path) -> None:
    folder = tiny_trunk(tmp_path / "trunk", "qwen2")
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    values = json.loads((folder / file).read_text())
    values["auto_map"] = {
        "AutoConfig": "theirs.Theirs",
        "AutoModelForCausalLM": "theirs.Theirs",
        "AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"],
    }
    expected = logits(named(folder))
    (folder / file).write_text(json.dumps(values))
    assert torch.equal(logits(named(folder)), expected), "its own class is known by its type"
    values["model_type"] = "theirs"
    values["tokenizer_class"] = "Theirs"
    (folder / file).write_text(json.dumps(values))
    try:
        named(folder)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_trunk(tmp_path / "trunk", "qwen2")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"mllm\.trunk\.model='.*' cannot be had: .* model\.safetensors"):
        named(folder)


def test_a_tensor_that_the_weights_lack_is_named(tmp_path: Path) -> None:
    folder = tiny_trunk(tmp_path / "trunk", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"its weights lack 1 tensors, such as model\.layers\.1\.self_attn\.q_"
    ):
        named(folder)

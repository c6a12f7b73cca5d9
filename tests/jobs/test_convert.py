"""`dualtoken convert` as a user meets it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig, TowerConfig
from dualtoken.model.convert.reference import to_reference
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.errors import UserError
from tests.helpers.command_line import printed_lines

QUANTIZER = QuantizerConfig(num_codes=32, depth=2, width=8, restart_below=None)
REFERENCE_QUANTIZER = {
    "n_embed": 32,
    "embed_dim": 8,
    "restart_unused_codes": False,
    "code_shape": [2, 2, 2],
}
REFERENCE = {
    "layer_recon": 1,
    "layer_sem": 2,
    "ddconfig": {
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "decoder_in_channels": 32,
        "resolution": 16,
    },
    "decoder_latent_shape": [8, 8],
    "vq_pix": REFERENCE_QUANTIZER,
    "vq_sem": REFERENCE_QUANTIZER,
    "siglip": {"vision": {"num_attention_heads": 2}},
}
"""The reference's config.json of the tokenizer below."""
TEXT_TOWER = {
    "siglip_model.text_model.head.bias": torch.zeros(2),
    "siglip_model.logit_scale": torch.zeros(1),
}
"""Weights that only the reference's checkpoints have."""


@pytest.fixture
def tokenizer() -> DualTokenizer:
    torch.manual_seed(0)
    return DualTokenizer(
        TokenizerConfig(
            image_size=16,
            tower=TowerConfig(patch_size=8, width=32, depth=3, num_heads=2, mlp_width=32),
            pixel_block=1,
            semantic_block=2,
            pixel=QUANTIZER,
            semantic=QUANTIZER,
            decoder=DecoderConfig(
                latent_size=8, latent_width=32, width=32, multipliers=(1, 1), num_res_blocks=1
            ),
        )
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "reference.json").write_text(json.dumps(REFERENCE))
    return tmp_path / "reference.json"


def convert(*arguments: object) -> list[str]:
    return printed_lines("convert", *arguments)


@pytest.mark.parametrize(("kind", "num_left_out"), [("pt", 1), ("safetensors", 0)])
def test_a_checkpoint_becomes_a_folder_and_goes_back_to_the_bit(
    tokenizer: DualTokenizer, config: Path, tmp_path: Path, kind: str, num_left_out: int
) -> None:
    weights = to_reference(tokenizer.state_dict(), tokenizer.config)
    source = tmp_path / f"official.{kind}"
    if kind == "pt":
        saved = {f"module.{name}": tensor for name, tensor in (weights | TEXT_TOWER).items()}
        torch.save({"epoch": 8, "state_dict": saved}, source)
    else:
        save_file(weights, source)
    lines = convert(source, tmp_path / "ours", "--config", config)
    assert lines[1] == f"left out: {num_left_out} tensors of the text tower, which a tokenizer does not have"
    loaded = DualTokenizer.from_pretrained(tmp_path / "ours")
    assert loaded.config == tokenizer.config
    assert_equal_tensors(loaded.state_dict(), tokenizer.state_dict())
    lines = convert("--to-reference", tmp_path / "ours", tmp_path / "back.safetensors")
    assert "absent: siglip_model.text_model.*" in lines[1]
    assert_equal_tensors(load_file(tmp_path / "back.safetensors"), weights)


def assert_equal_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_mistakes_are_told_for_the_user_to_mend(
    tokenizer: DualTokenizer, config: Path, tmp_path: Path
) -> None:
    weights = to_reference(tokenizer.state_dict(), tokenizer.config)
    official = tmp_path / "official.safetensors"
    other = tmp_path / "other.safetensors"
    text = tmp_path / "text.pt"
    out = tmp_path / "out"
    save_file(weights, official)
    save_file({"a": torch.zeros(1)}, other)
    text.write_text("not weights")
    mistakes: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "none.pt", out, "--config", config), "none.pt does not exist"),
        ((official, out), "--config is missing"),
        ((official, out, "--config", text), "cannot be read as JSON"),
        ((text, out, "--config", config), "text.pt cannot be read as weights alone"),
        ((other, out, "--config", config), "lacks siglip_model.vision_model"),
        ((tmp_path, out), "config.json cannot be read"),
        (("--to-reference", tmp_path, out), "does not end in .safetensors"),
        (("--to-reference", tmp_path, tmp_path / "out.safetensors"), "has no config.json"),
    ]
    for arguments, message in mistakes:
        with pytest.raises(UserError, match=message) as error:
            convert(*arguments)
        assert "\n" not in str(error.value)
    assert not out.exists()


def test_nothing_that_is_there_is_written_over(
    tokenizer: DualTokenizer, config: Path, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "ours")
    save_file(to_reference(tokenizer.state_dict(), tokenizer.config), tmp_path / "official.safetensors")
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()
    for arguments in (
        (tmp_path / "official.safetensors", tmp_path / "ours", "--config", config),
        ("--to-reference", tmp_path / "ours", tmp_path / "official.safetensors"),
    ):
        with pytest.raises(UserError, match="is there already: name a new one, or remove it"):
            convert(*arguments)
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == before

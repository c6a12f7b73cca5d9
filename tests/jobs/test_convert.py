"""`dualtoken convert` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig, TowerConfig
from dualtoken.model.convert.reference import to_reference
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.errors import UserError

QUANTIZER = QuantizerConfig(num_codes=32, depth=2, width=8, restart_below=None)
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
    "vq_pix": (
        quantizer := {"n_embed": 32, "embed_dim": 8, "restart_unused_codes": False, "code_shape": [2, 2, 2]}
    ),
    "vq_sem": quantizer,
    "siglip": {"vision": {"num_attention_heads": 2}},
}


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
    ended = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout.splitlines()


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_checkpoint_becomes_a_folder_and_goes_back_to_the_bit(
    tokenizer: DualTokenizer, config: Path, tmp_path: Path, kind: str
) -> None:
    weights = to_reference(tokenizer.state_dict(), tokenizer.config)
    source = tmp_path / f"official.{kind}"
    if kind == "pt":
        extra = {
            "siglip_model.text_model.head.bias": torch.zeros(2),
            "siglip_model.logit_scale": torch.zeros(1),
        }
        torch.save(
            {
                "epoch": 8,
                "state_dict": {f"module.{name}": tensor for name, tensor in (weights | extra).items()},
            },
            source,
        )
    else:
        save_file(weights, source)
    said = convert(source, tmp_path / "ours", "--config", config)
    assert (
        said[1]
        == f"left out: {1 if kind == 'pt' else 0} tensors of the text tower, which a tokenizer does not have"
    )
    loaded = DualTokenizer.from_pretrained(tmp_path / "ours")
    assert loaded.config == tokenizer.config
    assert all(
        torch.equal(tensor, tokenizer.state_dict()[name]) for name, tensor in loaded.state_dict().items()
    )
    assert (
        "absent: siglip_model.text_model.*"
        in convert("--to-reference", tmp_path / "ours", tmp_path / "back.safetensors")[1]
    )
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_mistakes_are_told_for_the_user_to_mend(
    tokenizer: DualTokenizer, config: Path, tmp_path: Path
) -> None:
    weights = to_reference(tokenizer.state_dict(), tokenizer.config)
    save_file(weights, tmp_path / "official.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.pt").write_text("not weights")
    for arguments, message in (
        ((tmp_path / "none.pt", tmp_path / "out", "--config", config), "none.pt does not exist"),
        ((tmp_path / "official.safetensors", tmp_path / "out"), "--config is missing"),
        (
            (tmp_path / "official.safetensors", tmp_path / "out", "--config", tmp_path / "text.pt"),
            "cannot be read as JSON",
        ),
        (
            (tmp_path / "text.pt", tmp_path / "out", "--config", config),
            "text.pt cannot be read as weights alone",
        ),
        (
            (tmp_path / "other.safetensors", tmp_path / "out", "--config", config),
            "lacks siglip_model.vision_model",
        ),
        ((tmp_path, tmp_path / "out"), "config.json cannot be read"),
        (("--to-reference", tmp_path, tmp_path / "out"), "does not end in .safetensors"),
        (("--to-reference", tmp_path, tmp_path / "out.safetensors"), "has no config.json"),
    ):
        with pytest.raises(UserError, match=message) as error:
            convert(*arguments)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


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

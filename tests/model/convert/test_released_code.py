"""What the released code's configuration can say is read, computes the same, and goes back.

The other side is `tests/helpers/released_code.py`, written apart from our networks.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from dualtoken.model.config.tokenizer import DecoderConfig, TokenizerConfig
from dualtoken.model.convert.reference import from_reference, to_reference
from dualtoken.model.convert.reference_config import config_from_reference, config_to_reference
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from tests.helpers.command_line import printed_lines
from tests.helpers.released_code import ReleasedCode
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config

WIDTH = 64
PATCH = 4
NUM_IMAGES = 15


@st.composite
def quantizers(draw: st.DrawFn, depth: int, kind: str) -> dict[str, Any]:
    return {
        "bottleneck_type": kind,
        "code_shape": [4, 4, depth],
        "n_embed": draw(st.sampled_from([5, 16])),
        "embed_dim": draw(st.sampled_from([8, 16, 64, 128])),
        "decay": draw(st.sampled_from([0.9, 0.99])),
        "shared_codebook": draw(st.booleans()),
        "restart_unused_codes": draw(st.booleans()),
    }


@st.composite
def released_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a configuration of the released code of any shape that it can express, small."""
    num_layers = draw(st.integers(2, 4))
    layer_sem = draw(st.integers(1, num_layers - 1))
    layer_recon = draw(st.integers(1, layer_sem))
    layer_shortcut = draw(st.none() | st.integers(1, layer_recon))
    num_levels = draw(st.integers(1, 3))
    latent_is_the_grid = draw(st.booleans())
    if latent_is_the_grid:
        num_levels = 3
    image_size = 16
    grid = image_size // PATCH
    latent = image_size // 2 ** (num_levels - 1)
    lower_left_over = draw(st.integers(0, 2))
    depth = draw(st.integers(1, 3))
    resolutions = [image_size // 2**level for level in range(num_levels)]
    return {
        "hidden_size": WIDTH,
        "layer_recon": layer_recon,
        "layer_sem": layer_sem,
        "layer_shortcut": layer_shortcut,
        "weight_shortcut": draw(st.sampled_from([0.6, -1.5])) if layer_shortcut else None,
        "ddconfig": {
            "attn_resolutions": draw(st.lists(st.sampled_from(resolutions), unique=True)),
            "ch": 32,
            "ch_mult": draw(st.lists(st.sampled_from([1, 2]), min_size=num_levels, max_size=num_levels)),
            "num_res_blocks": draw(st.integers(1, 2)),
            "decoder_in_channels": draw(st.sampled_from([32, 64, 96])),
            "resolution": image_size,
            "in_channels": 3,
            "out_ch": 3,
            "double_z": False,
            "dropout": 0.0,
        },
        "decoder_latent_shape": None if latent_is_the_grid and latent == grid else [latent, latent],
        "vq_pix": draw(quantizers(depth, "rq")),
        "vq_sem": draw(quantizers(depth, "rq_ema")),
        "siglip": {
            "vision": {
                "hidden_size": WIDTH,
                "intermediate_size": 48,
                "num_hidden_layers": num_layers,
                "num_attention_heads": draw(st.sampled_from([2, 4])),
                # Pixels at the right and bottom that no patch covers.
                "image_size": image_size,
                "patch_size": PATCH if latent_is_the_grid else PATCH + lower_left_over,
                "hidden_act": draw(st.sampled_from(["gelu_pytorch_tanh", "gelu"])),
            }
        },
    }


def random_weights(config: TokenizerConfig, seed: int) -> dict[str, Tensor]:
    """Return weights under the released names that tell codes, heads and activations apart."""
    torch.manual_seed(seed)
    weights = to_reference(DualTokenizer(config).state_dict(), config)
    for name, tensor in weights.items():
        if name.endswith(("q_bias", "v_bias", ".bias")):
            tensor.normal_(std=0.3)
        elif tensor.ndim > 1 and "codebooks" not in name and "embed_ema" not in name:
            tensor.mul_(2)
    return weights


def initial_config(values: dict[str, Any]) -> TokenizerConfig:
    """Read a configuration whose tower is described by the file alone."""
    vision = values["siglip"]["vision"]
    width, patch = vision["hidden_size"], vision["patch_size"]
    prefix = "siglip_model.vision_model."
    state = {
        f"{prefix}embeddings.patch_embedding.weight": torch.empty(width, 3, patch, patch),
        f"{prefix}encoder.layers.0.mlp.fc1.weight": torch.empty(vision["intermediate_size"], width),
    }
    return config_from_reference(values, state)


def require_same(tokenizer: DualTokenizer, released: ReleasedCode, seed: int) -> None:
    side = tokenizer.config.image_size
    images = torch.rand(NUM_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    # In float64 rounding hides no fault: what was left of pictures is 5e-14 to 3e-12.
    exact_released = copy.deepcopy(released).double()
    exact = exact_released(images.double()).images
    exact_tokenizer = copy.deepcopy(tokenizer).double()
    require_same_outputs(exact_tokenizer, exact_released, images.double(), exact, tolerance=1e-11)
    require_same_outputs(tokenizer, released, images, exact, tolerance=1e-4)


def require_same_outputs(
    tokenizer: DualTokenizer,
    released: ReleasedCode,
    images: Tensor,
    exact: Tensor,
    tolerance: float,
) -> None:
    """Compare codes, embeddings and pictures.

    Some random networks magnify float32's rounding, the released code's as much as ours. So where pictures
    are further than `tolerance` apart, ours must be as close to the exact ones: at most twice the released
    error, in the median of the pictures. In a single one of them either error may be six times the other.
    """
    expected = released(images)
    codes = tokenizer.encode(images)
    assert torch.equal(codes.pixel.flatten(1, 2), expected.pixel)
    assert torch.equal(codes.semantic.flatten(1, 2), expected.semantic)
    output = tokenizer(images)
    torch.testing.assert_close(output.pooled, expected.pooled, atol=tolerance, rtol=tolerance)
    decoded = tokenizer.decode(codes.pixel)
    # Weights are random, so pictures are of any size: rounding grows with it.
    size = expected.images.abs().max().item()
    if (decoded - expected.images).abs().max() <= tolerance * size:
        return
    assert median_error(decoded - exact) <= 2 * median_error(expected.images - exact)


def median_error(errors: Tensor) -> float:
    """Return the root mean square of each picture's errors, of the median picture."""
    return errors.double().square().mean(dim=(1, 2, 3)).sqrt().median().item()


@settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(values=released_configs(), seed=st.integers(0, 2**16))
def test_every_configuration_of_the_released_code_computes_the_same_here_and_back_there(
    values: dict[str, Any], seed: int
) -> None:
    config = initial_config(values)
    weights = random_weights(config, seed)
    assert config_from_reference({"config": values}, weights) == config
    tokenizer = DualTokenizer.from_weights(config, from_reference(weights, config))
    require_same(tokenizer, ReleasedCode(values, weights), seed)
    # And back, through the file that is written beside the weights.
    written = json.loads(json.dumps(config_to_reference(config)))
    back = to_reference(tokenizer.state_dict(), config)
    assert back.keys() == weights.keys()
    assert config_from_reference(written, back) == config
    require_same(tokenizer, ReleasedCode(written, back), seed)


def simple_config() -> dict[str, Any]:
    """Return a configuration without shortcut and latent shape, with a codebook per depth."""
    return {
        "layer_recon": 1,
        "layer_sem": 2,
        "layer_shortcut": None,
        "ddconfig": {
            "attn_resolutions": [16],
            "ch": 32,
            "ch_mult": [1, 1, 2],
            "num_res_blocks": 1,
            "decoder_in_channels": 32,
            "resolution": 16,
        },
        "decoder_latent_shape": None,
        "vq_pix": {"n_embed": 16, "embed_dim": 8, "code_shape": [4, 4, 2], "shared_codebook": False},
        "vq_sem": {"n_embed": 16, "embed_dim": 8, "code_shape": [4, 4, 2]},
        "siglip": {
            "vision": {
                "hidden_size": WIDTH,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": PATCH,
            }
        },
    }


def test_the_command_writes_a_configuration_that_reads_its_weights_back(tmp_path: Path) -> None:
    values = simple_config()
    config = initial_config(values)
    assert isinstance(config.decoder, DecoderConfig)
    assert config.decoder.attends == (0,)
    torch.save({"state_dict": random_weights(config, 0)}, tmp_path / "epoch_6.pt")
    (tmp_path / "released.json").write_text(json.dumps(values))
    printed_lines(
        "convert", tmp_path / "epoch_6.pt", tmp_path / "ours", "--config", tmp_path / "released.json"
    )
    printed_lines("convert", "--to-reference", tmp_path / "ours", tmp_path / "back.safetensors")
    printed_lines(
        "convert", tmp_path / "back.safetensors", tmp_path / "again", "--config", tmp_path / "back.json"
    )
    tokenizer = DualTokenizer.from_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "back.json").read_text())
    require_same(tokenizer, ReleasedCode(written, load_file(tmp_path / "back.safetensors")), 0)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_attention_at_its_usual_place_leaves_saved_configurations_as_they_were(tmp_path: Path) -> None:
    config = tiny_tokenizer_config()
    DualTokenizer(config).save_pretrained(tmp_path)
    assert "attention_levels" not in (tmp_path / "config.json").read_text()
    assert "attention_levels" not in config.decoder.identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ddconfig": {"out_ch": 4}}, "ddconfig.out_ch=4"),
        ({"decoder_latent_shape": [4, 2]}, r"decoder_latent_shape=\[4, 2\]: ours decodes squares"),
        ({"vq_sem": {"n_embed": [16, 8]}}, r"vq_sem.n_embed=\[16, 8\]"),
        ({"vq_pix": {"bottleneck_type": "lfq"}}, "vq_pix.bottleneck_type=lfq"),
        ({"layer_sem": "two"}, "configuration.semantic_block"),
        ({"ddconfig": {"ch_mult": 3}}, "another type"),
        ({"ddconfig": {"num_res_blocks": 10**9}}, "asks for .* weights or more"),
    ],
)
def test_what_cannot_be_ours_is_one_line(change: dict[str, Any], message: str) -> None:
    values = simple_config()
    weights = random_weights(initial_config(values), 0)
    for key, part in change.items():
        values[key] = values[key] | part if isinstance(part, dict) else part
    with pytest.raises(ValueError, match=rf"\A.*{message}.*\Z"):
        from_reference(weights, config_from_reference(values, weights))

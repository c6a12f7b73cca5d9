"""The released code's checkpoints and ours: keys accounted for, mistakes named, old layouts told apart."""

import ast
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig, ScalarQuantizerConfig
from dualtoken.model.config.tokenizer import NamedTower, TokenizerConfig
from dualtoken.model.convert.reference import from_reference, to_reference
from dualtoken.model.convert.reference_config import config_from_reference
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from tests.model.vectors.make import CONFIG, VECTORS

SHARED = Path(__file__).resolve().parents[4] / "shared"
DOCS = SHARED / "docs"
TEXT = ("siglip_model.text_model.", "siglip_model.logit_")
RELEASED = {
    "layer_recon": 6,
    "layer_sem": 26,
    "layer_shortcut": 4,
    "weight_shortcut": 0.6,
    "ddconfig": {"ch": 128, "ch_mult": [1, 1, 4, 4, 8], "num_res_blocks": 2, "decoder_in_channels": 1024},
}
"""Settings that both of the released configuration files share."""


@pytest.fixture
def official() -> dict[str, Tensor]:
    return load_file(VECTORS / "official_state_dict.safetensors")


def released_config(image_size: int, latent: int, depth: int) -> dict[str, object]:
    quantizer = {
        "n_embed": 16384,
        "embed_dim": 32,
        "decay": 0.99,
        "restart_unused_codes": True,
        "shared_codebook": True,
    }
    quantizer |= {"code_shape": [latent, latent, depth]}
    decoder = RELEASED["ddconfig"] | {"attn_resolutions": [latent], "resolution": image_size}
    return RELEASED | {
        "ddconfig": decoder,
        "decoder_latent_shape": [latent, latent],
        "vq_pix": quantizer,
        "vq_sem": quantizer,
    }


@pytest.mark.skipif(not DOCS.is_dir(), reason=f"no key lists: {DOCS} is missing")
@pytest.mark.parametrize(("image_size", "latent", "depth", "grid"), [(384, 24, 8, 27), (256, 16, 4, 16)])
def test_every_key_of_the_released_models_is_accounted_for(
    image_size: int, latent: int, depth: int, grid: int
) -> None:
    official = {}
    for line in (DOCS / f"state_dict_{image_size}.txt").read_text().splitlines():
        name, shape, _ = line.split("\t")
        official[name] = torch.empty(ast.literal_eval(shape), device="meta")
    config = config_from_reference(released_config(image_size, latent, depth), official)
    assert (config.grid_size, config.tower.depth, config.pixel.depth) == (grid, 27, depth)
    with torch.device("meta"):
        state = DualTokenizer(config).state_dict()
    converted = to_reference(state, config)
    assert converted.keys() == {name for name in official if not name.startswith(TEXT)}
    for name, tensor in converted.items():
        assert tensor.shape == official[name].shape, name


def refused(official: dict[str, Tensor]) -> list[str]:
    with pytest.raises(ValueError, match="checkpoint") as error:
        from_reference(official, CONFIG)
    return str(error.value).splitlines()


def test_each_wrong_key_is_named_with_its_kind(official: dict[str, Tensor]) -> None:
    del official["decoder.conv_in.bias"]
    official["decoder.conv_inn.bias"] = torch.zeros(3)
    official["post_quant_conv.norm1.bias"] = torch.zeros(5)
    official["siglip_model.text_model.head.bias"] = torch.zeros(7)  # no part of a tokenizer, and no mistake
    assert refused(official) == [
        "the checkpoint does not fit the configuration: of its keys 1 missing, 1 unexpected, 1 misshapen",
        "missing: decoder.conv_in.bias (16,)",
        "unexpected: decoder.conv_inn.bias (3,)",
        "misshapen: post_quant_conv.norm1.bias (5,), not (24,)",
    ]


def test_each_of_many_wrong_keys_is_named(official: dict[str, Tensor]) -> None:
    missing = sorted(name for name in official if name.startswith("decoder."))
    for name in missing:
        del official[name]
    summary, *lines = refused(official)
    assert summary.endswith(f"{len(missing)} missing, 0 unexpected, 0 misshapen")
    assert [line.split()[1] for line in lines] == missing


def test_codebooks_that_differ_by_depth_are_refused(official: dict[str, Tensor]) -> None:
    official["quantizer_sem.codebooks.1.embed_ema"][3] += 1
    message = (
        "quantizer_sem.codebooks.1.embed_ema differs from quantizer_sem.codebooks.0.embed_ema: "
        "shared_codebook=true says that depths share a codebook; "
        "give the configuration that the checkpoint was trained with"
    )
    assert refused(official) == [message]


def test_networks_of_older_layouts_are_refused_by_name(official: dict[str, Tensor]) -> None:
    march = {}
    cleaned = {}  # as the authors' own script leaves it
    for name, tensor in official.items():
        march[name.replace("_sem.", "_semantic.").replace("_pix.", "_pixel.")] = tensor
        if not name.startswith("prequant_sem."):
            cleaned[name] = tensor
    oldest = {"quantizer.codebooks.0.weight": torch.zeros(2), "prequant_visual.norm1.weight": torch.zeros(2)}
    for state, layout in ((march, "March 2026"), (cleaned, "March 2026"), (oldest, "2025")):
        assert f"the layout of {layout} (" in refused(state)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_recon": None}, "lacks layer_recon"),
        ({"siglip": {"vision": {"num_attention_heads": 2, "hidden_act": "relu"}}}, "hidden_act=relu"),
        ({"siglip": {}}, "the tower is 24 wide, as no published SigLIP"),
    ],
)
def test_a_configuration_that_cannot_be_ours_is_refused(
    official: dict[str, Tensor], change: dict, message: str
) -> None:
    values = tiny_reference_config()
    for key, part in change.items():
        if part is None:
            del values[key]
        else:
            values[key] = values[key] | part if part else {}
    with pytest.raises(ValueError, match=message):
        config_from_reference({"config": values}, official)


def tiny_reference_config() -> dict:
    quantizer = {
        "n_embed": 32,
        "embed_dim": 8,
        "decay": 0.99,
        "restart_unused_codes": False,
        "code_shape": [3, 3, 2],
    }
    decoder = {
        "ch": 32,
        "ch_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "decoder_in_channels": 32,
        "resolution": 16,
    }
    return {
        "layer_recon": 2,
        "layer_sem": 3,
        "layer_shortcut": 1,
        "weight_shortcut": 0.6,
        "ddconfig": decoder,
        "decoder_latent_shape": [4, 4],
        "vq_pix": dict(quantizer),
        "vq_sem": dict(quantizer),
        "siglip": {"vision": {"num_attention_heads": 2}},
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"causal_pixel": False}, "causal_pixel=False"),
        ({"causal_semantic": False}, "causal_semantic=False"),
        ({"shared_codebook": True}, "shared_codebook=True"),
        ({"pixel": QuantizerConfig(num_codes=8, depth=2, width=8, beam=4)}, "pixel.beam=4"),
        (
            {"semantic": ScalarQuantizerConfig(kind="scalar", levels=(4, 4), depth=2)},
            "semantic=ScalarQuantizerConfig",
        ),
    ],
)
def test_what_the_released_code_has_no_like_of_is_refused(change: dict[str, object], named: str) -> None:
    other = CONFIG.model_copy(update=change)
    with pytest.raises(
        ValueError, match=f"{re.escape(named)}.*cannot be written as the released code's checkpoint"
    ):
        to_reference({}, other)


def test_a_tower_by_name_has_no_place_in_the_released_code() -> None:
    quantizer = {"depth": 2, "width": 8, "num_codes": 8}
    config = TokenizerConfig.model_validate(
        {
            "image_size": 384,
            "tower": NamedTower(model="ViT-B-16-SigLIP2-384"),
            "pixel": quantizer,
            "semantic": quantizer,
            "decoder": {"latent_size": 24},
        }
    )
    with pytest.raises(ValueError, match="the released code has SigLIP towers described by their shape only"):
        to_reference({}, config)

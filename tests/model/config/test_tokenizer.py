"""Widths that cannot be shared evenly are refused in one sentence, wherever a recipe gives them."""

from typing import Any

import pytest
from pydantic import ValidationError

from dualtoken.model.config.base import Config
from dualtoken.model.config.tokenizer import ConvEncoderConfig, DecoderConfig, TextConfig, TowerConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig

TOWER = {"patch_size": 8, "width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64}
DECODER = {"kind": "transformer", "latent_size": 4, "patch_size": 4, "width": 32, "num_heads": 2}


@pytest.mark.parametrize(
    ("kind", "values"),
    [(TowerConfig, TOWER), (TextConfig, {"width": 32}), (TransformerDecoderConfig, DECODER)],
)
def test_heads_share_the_width_evenly(kind: type[Config], values: dict[str, Any]) -> None:
    kind.model_validate(values)
    with pytest.raises(ValidationError, match="width=32 is no multiple of num_heads=5: change one of them"):
        kind.model_validate(values | {"num_heads": 5})


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            DecoderConfig,
            {"latent_width": 48},
            "does not divide 48 channels: change latent_width or norm_groups",
        ),
        (DecoderConfig, {"width": 48}, "does not divide 48 channels: change width or norm_groups"),
        (ConvEncoderConfig, {"width": 40}, "does not divide 40 channels: change width or norm_groups"),
    ],
)
def test_groups_share_the_channels_of_every_level_evenly(
    kind: type[Config], values: dict[str, Any], message: str
) -> None:
    kind()
    with pytest.raises(ValidationError, match=f"norm_groups=32 {message}"):
        kind.model_validate(values)

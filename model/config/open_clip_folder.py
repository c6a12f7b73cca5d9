"""The file open_clip_config.json of a model's folder: the keys and values that are taken from outside.

open_clip hands most of these values on as they are, some of them to libraries that run code or fetch files
because of them. So a key that is not named here is refused.
"""

from typing import Annotated, Literal

from pydantic import Field

from dualtoken.model.config.base import Config, PositiveInt
from dualtoken.model.config.open_clip import model_config as packaged_config
from dualtoken.model.config.open_clip import model_names

Count = Annotated[int, Field(ge=0, le=2**31)]
Layers = Annotated[int, Field(ge=1, le=1024)]
Ratio = Annotated[float, Field(gt=0, le=64)]
Share = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=16_384)]
Color = Annotated[list[float], Field(min_length=3, max_length=3)]
Deviation = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class ActivationOptions(Config):
    """Options of the GELU."""

    approximate: Literal["none", "tanh"] = "none"


class NormOptions(Config):
    """Options of a LayerNorm."""

    eps: Annotated[float, Field(gt=0, le=1)] = 1e-5


class TextTokenizerOptions(Config):
    """Options of open_clip's wrapper of a text tokeniser; it hands all others on to transformers."""

    clean: Literal["canonicalize", "lower", "whitespace"] | None = None
    strip_sep_token: bool | None = None
    language: Annotated[str, Field(pattern=r"^[\w-]+$")] | None = None


class BlockOptions(Config):
    """What blocks of both of open_clip's own towers have in common."""

    width: PositiveInt | None = None
    mlp_ratio: Ratio | None = None
    ls_init_value: float | None = None
    output_tokens: bool | None = None
    pool_type: Literal["tok", "avg", "none", "first", "last", "argmax", "eos"] | None = None
    final_ln_after_pool: bool | None = None
    act_kwargs: ActivationOptions | None = None
    norm_kwargs: NormOptions | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool | None = None
    scaled_cosine_attn: bool | None = None
    scale_heads: bool | None = None
    scale_attn_inner: bool | None = None
    scale_attn: bool | None = None
    scale_fc: bool | None = None


class VisionConfig(BlockOptions):
    """The image tower: open_clip's own, or one that timm knows by name."""

    layers: Layers | Annotated[list[Layers], Field(min_length=4, max_length=4)] | None = None
    head_width: PositiveInt | None = None
    patch_size: PositiveInt | None = None
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    patch_dropout: Share | None = None
    attentional_pool: bool | Literal["cascade", "parallel"] | None = None
    attn_pooler_queries: Annotated[int, Field(ge=1, le=65_536)] | None = None
    attn_pooler_heads: PositiveInt | None = None
    no_ln_pre: bool | None = None
    pos_embed_type: Literal["learnable", "sin_cos_2d"] | None = None
    # A name of timm's registry: with a colon or slash it would be a folder or repository of the hub.
    timm_model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")] | None = None
    timm_model_pretrained: Literal[False] | None = None
    timm_pool: Literal["", "abs_attn", "avg", "map", "rot_attn", "tok", "token"] | None = None
    timm_proj: Literal["", "linear", "mlp", "none"] | None = None
    timm_proj_bias: bool | None = None
    timm_drop: Share | None = None
    timm_drop_path: Share | None = None


class TextTowerConfig(BlockOptions):
    """The text tower, and which tokeniser it reads."""

    context_length: Annotated[int, Field(ge=1, le=65_536)] | None = None
    vocab_size: PositiveInt | None = None
    hf_tokenizer_name: str | None = None  # only whether there is one: its files stand beside the weights
    tokenizer_mode: Literal["", "clips"] | None = None
    tokenizer_kwargs: TextTokenizerOptions | None = None
    heads: PositiveInt | None = None
    layers: Layers | None = None
    embed_cls: bool | None = None
    pad_id: Count | None = None
    eos_id: Count | None = None
    no_causal_mask: bool | None = None
    proj_bias: bool | None = None
    proj_type: Literal["linear", "none"] | None = None
    hf_model_name: str | None = None
    hf_model_pretrained: bool | None = None
    hf_proj_type: Literal["linear", "mlp", "none", ""] | None = None
    hf_pooler_type: (
        Literal["cls_pooler", "cls_last_hidden_state_pooler", "max_pooler", "mean_pooler"] | None
    ) = None


class ModelConfig(Config):
    """The key `model_cfg`."""

    embed_dim: PositiveInt
    vision_cfg: VisionConfig
    text_cfg: TextTowerConfig
    custom_text: bool | None = None
    quick_gelu: bool | None = None
    init_logit_scale: float | None = None
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool | None = None


class PreprocessConfig(Config):
    """The key `preprocess_cfg`."""

    size: Side | Annotated[list[Side], Field(min_length=2, max_length=3)] | None = None
    mode: Literal["RGB"] | None = None
    mean: Color | None = None
    std: Deviation | None = None
    interpolation: Literal["bicubic", "bilinear", "nearest", "random"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    fill_color: Annotated[int, Field(ge=0, le=255)] | None = None


def text_models() -> set[str]:
    """Return the names of text towers of Hugging Face's hub that open_clip's own configurations have."""
    names: set[str] = set()
    for model in model_names():
        name = packaged_config(model)["text_cfg"].get("hf_model_name")
        if name is not None:
            names.add(name)
    return names

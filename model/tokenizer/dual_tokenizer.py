"""DualToken's tokenizer: one tower, a pixel and a semantic codebook, one decoder.

Source: arXiv 2503.14324, section 3. The pixel tokens leave the tower at a shallow block. The semantic tokens
leave it late, are quantised, and run through the rest of it.

B images of S by S pixels, N = H*W tokens, W channels of the tower, E = W channels of an embedding, P and Q
channels of pixel and semantic tokens before they are widened, D depths, L by L positions of the decoder's
input, C class and register tokens of a tower that has them (SigLIP has none).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from dualtoken.model.config.base import validated
from dualtoken.model.config.sizes import least_weights
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.model.hub.model_name import CONFIG, WEIGHTS
from dualtoken.model.hub.saved_model import (
    HubModel,
    SavedConfig,
    of_one_save,
    read_config,
    read_safetensors,
    write_folder,
)
from dualtoken.model.quantize import Quantized, Quantizer, build_quantizer, encode_streams
from dualtoken.model.tokenizer.conv_encoder import ConvEncoder
from dualtoken.model.tokenizer.input_checks import require_shape_of_pictures, require_values_of_pictures
from dualtoken.model.tokenizer.model_card import card
from dualtoken.model.tokenizer.parts import decoding_parts, input_change, learned_prefix
from dualtoken.model.tokenizer.projection import AttnProjection
from dualtoken.model.vision.towers import (
    Tap,
    build_tower_like,
    encoder_weights,
    fill_computed_buffers,
    forward_from_block,
    forward_taps,
    names_that_differ,
    num_prefix_tokens,
)
from dualtoken.model.vision.transform import Transform


class Codes(NamedTuple):
    """Codes of images, in raster order."""

    semantic: Int[Tensor, "B H W D"]
    """Semantic codes, in [0, semantic.num_codes)."""
    pixel: Int[Tensor, "B H W D"]
    """Pixel codes, in [0, pixel.num_codes)."""


class SemanticFeatures(NamedTuple):
    """Features that the tower makes of semantic codes."""

    tokens: Float[Tensor, "B N W"]
    """Tokens in the place of the semantic block's output."""
    pooled: Float[Tensor, "B E"]
    """Image embedding, not normalised."""


class TokenizerOutput(NamedTuple):
    """Output of a forward pass: all that a loss needs; None for a stream that was not asked for."""

    reconstruction: Float[Tensor, "B 3 S S"] | None
    """Decoded images, about -1 to 1, not bounded."""
    semantic_tokens: Float[Tensor, "B N W"] | None
    """Tokens, as `SemanticFeatures.tokens`."""
    pooled: Float[Tensor, "B E"] | None
    """Image embedding, as `SemanticFeatures.pooled`."""
    pixel: Quantized | None
    """Quantised pixel tokens."""
    semantic: Quantized | None
    """Quantised semantic tokens; with a shared codebook the same object as `pixel`."""
    last_features: Float[Tensor, "B _ S S"] | None = None
    """Input of the decoder's last layer, without its graph: for that layer's gradients alone."""


class _QuantizedStreams(NamedTuple):
    pixel: Quantized | None
    semantic: Quantized | None


class DualTokenizer(nn.Module, HubModel):
    """Images to two streams of codes, pixel codes to images, semantic codes to features.

    `forward` changes no state: a training step moves the codebooks by calling their `update`.
    """

    input_scale: Float[Tensor, "3 1 1"] | None
    """Factor from images of -1 to 1 to what the tower expects; None where that is the same."""
    input_shift: Float[Tensor, "3 1 1"] | None
    """Shift after the factor."""
    quantize_pixel: Quantizer
    """Codebook of the pixel stream; the same module as `quantize_semantic` where both streams share one."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.transform = Transform(image_size=config.image_size)
        width = config.tower.width

        self.tower = build_tower_like(config.tower, config.image_size)
        self.prefix = learned_prefix(config, num_prefix_tokens(self.tower))
        scale, shift = input_change(config)
        self.register_buffer("input_scale", scale)
        self.register_buffer("input_shift", shift)

        # The order of construction matters: it is that of draws for the initial weights.
        self.pixel_encoder = None
        if config.pixel_encoder:
            self.pixel_encoder = ConvEncoder(config.pixel_encoder, config.pixel.width)
        self.reduce_pixel = None
        if not (config.shared_codebook or config.pixel_encoder):
            self.reduce_pixel = AttnProjection(width, config.pixel.width, causal=False)
        self.reduce_shortcut = None
        if config.shortcut:
            self.reduce_shortcut = AttnProjection(width, config.pixel.width, causal=False)
        self.reduce_semantic = AttnProjection(width, config.semantic.width, causal=False)

        if not config.shared_codebook:
            self.quantize_pixel = build_quantizer(config.pixel)
        self.quantize_semantic = build_quantizer(config.semantic)
        if config.shared_codebook:
            self._share_codebook()

        self.expand_pixel = AttnProjection(config.pixel.width, width, causal=config.causal_pixel)
        self.expand_semantic = AttnProjection(config.semantic.width, width, causal=config.causal_semantic)
        self.post_quant, self.decoder = decoding_parts(config.decoder, width)

    def _share_codebook(self) -> None:
        """Name the semantic codebook `quantize_pixel` too.

        A plain attribute, past nn.Module's own `__setattr__`: registered under two names, the codebook would
        stand twice in a state dict, and in a saved folder. As it is registered once, `to` moves it once, and
        a deep copy shares it too.
        """
        object.__setattr__(self, "quantize_pixel", self.quantize_semantic)

    def forward(
        self, images: Float[Tensor, "B 3 S S"], *, pixel: bool = True, semantic: bool = True
    ) -> TokenizerOutput:
        """Encode and decode images of -1 to 1; a stream not asked for is not computed."""
        taps = self._tap(images, pixel=pixel, semantic=semantic)
        quantized = self._quantize(images, taps, pixel=pixel, semantic=semantic)
        reconstruction = None
        last_features = None
        if quantized.pixel is not None:
            features = self.decoder.last_features(self._latent(quantized.pixel.vectors))
            reconstruction = self.decoder.conv_out(features)
            last_features = features.detach()
        tokens = None
        pooled = None
        if quantized.semantic is not None:
            prefix = taps[self.config.semantic_block].prefix
            tokens, pooled = self._semantic_features(quantized.semantic.vectors, prefix)
        return TokenizerOutput(
            reconstruction, tokens, pooled, quantized.pixel, quantized.semantic, last_features
        )

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"], *, check_values: bool = True) -> Codes:
        """Return both streams' codes of images of -1 to 1, or of what `transform` makes of levels.

        Runs the blocks up to the semantic one, and no decoder.

        Raises ValueError for another shape or type, and for values that no picture gives. Looking at values
        waits for the device: a loop over images that `transform` has made may leave it out. Compiled and
        exported graphs do.
        """
        if check_values and not torch.compiler.is_compiling():
            require_values_of_pictures(images, self.transform)
        taps = self._tap(images)
        semantic_stream = (self.quantize_semantic, self._semantic_tokens(taps))
        if self.config.shared_codebook:
            [semantic] = encode_streams([semantic_stream])
            pixel = semantic
        else:
            pixel_stream = (self.quantize_pixel, self._pixel_tokens(images, taps))
            pixel, semantic = encode_streams([pixel_stream, semantic_stream])
        grid = (self.config.grid_size, self.config.grid_size)
        return Codes(semantic=semantic.unflatten(1, grid), pixel=pixel.unflatten(1, grid))

    @torch.no_grad()
    def decode(self, pixel: Integer[Tensor, "B H W D"]) -> Float[Tensor, "B 3 S S"]:
        """Return the images that pixel codes stand for, about -1 to 1; `transform.to_uint8` clamps them.

        Raises ValueError for codes of another shape. No gradient passes: `forward` is for training.
        """
        return self.decoder(self._latent(self.quantize_pixel.lookup(self._ids(pixel))))

    @torch.no_grad()
    def semantic_features(self, semantic: Integer[Tensor, "B H W D"]) -> SemanticFeatures:
        """Return token features and the image embedding that semantic codes say, without gradients.

        Raises ValueError for codes of another shape, and for a tower with a class token whose `prefix` is the
        image's own.
        """
        if self.prefix is None and num_prefix_tokens(self.tower):
            raise ValueError(
                "tower.prefix=tower: codes lack the image's class token: train with tower.prefix=learned"
            )
        return self._semantic_features(self.quantize_semantic.lookup(self._ids(semantic)), None)

    def _ids(self, codes: Integer[Tensor, "B H W D"]) -> Int[Tensor, "B N D"]:
        side = self.config.grid_size
        depth = self.config.pixel.depth
        if codes.shape[1:] != (side, side, depth):
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}: pass (images, {side}, {side}, {depth}), "
                "as encode gives them"
            )
        return codes.flatten(1, 2).long()

    def _tap(
        self, images: Float[Tensor, "B 3 S S"], *, pixel: bool = True, semantic: bool = True
    ) -> dict[int, Tap]:
        """Return the output of each block that a stream leaves from; blocks after the last do not run."""
        config = self.config
        require_shape_of_pictures(images, config.image_size)
        blocks: set[int] = set()
        if semantic or config.shared_codebook:
            blocks.add(config.semantic_block)
        if pixel and self.reduce_pixel:
            blocks.add(config.pixel_block)
            if config.shortcut:
                blocks.add(config.shortcut.block)
        if not blocks:
            return {}
        if self.input_scale is not None and self.input_shift is not None:
            images = images * self.input_scale + self.input_shift
        return forward_taps(self.tower, images, blocks)

    def _quantize(
        self, images: Float[Tensor, "B 3 S S"], taps: Mapping[int, Tap], *, pixel: bool, semantic: bool
    ) -> _QuantizedStreams:
        """Return each stream's quantised tokens; None for a stream not asked for."""
        pixel_quantized = None
        semantic_quantized = None
        if self.config.shared_codebook:
            quantized = self.quantize_semantic(self._semantic_tokens(taps))
            if pixel:
                pixel_quantized = quantized
            if semantic:
                semantic_quantized = quantized
        else:
            if pixel:
                pixel_quantized = self.quantize_pixel(self._pixel_tokens(images, taps))
            if semantic:
                semantic_quantized = self.quantize_semantic(self._semantic_tokens(taps))
        return _QuantizedStreams(pixel_quantized, semantic_quantized)

    def _pixel_tokens(
        self, images: Float[Tensor, "B 3 S S"], taps: Mapping[int, Tap]
    ) -> Float[Tensor, "B N P"]:
        if self.pixel_encoder:
            return self.pixel_encoder(images)
        assert self.reduce_pixel is not None
        tokens = self.reduce_pixel(taps[self.config.pixel_block].tokens)
        shortcut = self.config.shortcut
        if shortcut and self.reduce_shortcut:
            tokens = tokens + shortcut.weight * self.reduce_shortcut(taps[shortcut.block].tokens)
        return tokens

    def _semantic_tokens(self, taps: Mapping[int, Tap]) -> Float[Tensor, "B N Q"]:
        return self.reduce_semantic(taps[self.config.semantic_block].tokens)

    def _semantic_features(
        self, vectors: Float[Tensor, "B N Q"], prefix: Float[Tensor, "B C W"] | None
    ) -> SemanticFeatures:
        tokens = self.expand_semantic(vectors)
        if self.prefix is not None:
            prefix = self.prefix.expand(len(tokens), -1, -1)
        pooled = forward_from_block(self.tower, tokens, self.config.semantic_block, prefix)
        return SemanticFeatures(tokens, pooled)

    def _latent(self, vectors: Float[Tensor, "B N P"]) -> Float[Tensor, "B _ L L"]:
        """Return the decoder's input."""
        grid_size = self.config.grid_size
        latent_size = self.config.decoder.latent_size
        tokens = self.expand_pixel(vectors)
        grid = tokens.transpose(1, 2).unflatten(2, (grid_size, grid_size))
        if latent_size != grid_size:
            grid = F.interpolate(grid, size=(latent_size, latent_size), mode="bilinear", align_corners=False)
        return self.post_quant(grid)

    def init_tower(self, weights: nn.Module | Mapping[str, Tensor]) -> None:
        """Start from the vision tower of a teacher of the same shape: the module itself or its state dict.

        Raises ValueError if names or shapes differ.
        """
        state = encoder_weights(weights.state_dict()) if isinstance(weights, nn.Module) else weights
        _load(self.tower, state, f"a tower of {self.config.tower!r}, image_size={self.config.image_size}")

    def _save_pretrained(self, save_directory: Path) -> None:
        saved = SavedConfig(self.config.model_dump(mode="json"), self.transform.model_dump(mode="json"))
        write_folder(save_directory, saved, self.state_dict())

    def _card(self, fingerprint: str | None) -> str:
        num_parameters = {}
        for name, module in self.named_children():
            num_parameters[name] = sum(parameter.numel() for parameter in module.parameters())
        return card(self.config, self.transform, num_parameters, fingerprint)

    @classmethod
    def _from_folder(cls, folder: Path, device: torch.device) -> "DualTokenizer":
        saved = read_config(folder)
        config = validated(TokenizerConfig, saved.config, f"{folder}/{CONFIG}: config")
        transform = None
        if saved.transform:
            transform = validated(Transform, saved.transform, f"{folder}/{CONFIG}: transform")
        with of_one_save(folder):
            state = read_safetensors(folder / WEIGHTS, device)
            tokenizer = cls.from_weights(config, state, f"the model of {folder}/{CONFIG}")
        if transform is not None:
            tokenizer.transform = transform
        return tokenizer

    @classmethod
    def from_weights(
        cls, config: TokenizerConfig, state: Mapping[str, Tensor], expected: str = "the configuration"
    ) -> "DualTokenizer":
        """Return a model made of given weights, ready for inference.

        Raises ValueError for other names or shapes; `expected` is what the error says they do not fit.
        """
        num_weights = sum(tensor.numel() for tensor in state.values())
        if least_weights(config) > num_weights:
            raise ValueError(
                f"weights do not fit {expected}: it asks for {least_weights(config):,} or more, "
                f"and there are {num_weights:,}"
            )
        # On meta, since initial weights that are replaced at once would cost seconds for a large tower.
        with torch.device("meta"):
            tokenizer = cls(config)
        _load(tokenizer, state, expected, assign=True)
        device = next(iter(state.values())).device
        fill_computed_buffers(tokenizer.tower, config.tower, config.image_size, device)
        return tokenizer.eval()


def _load(module: nn.Module, state: Mapping[str, Tensor], expected: str, *, assign: bool = False) -> None:
    """Load weights; a name or shape that differs is a ValueError that says what was expected."""
    own_state = module.state_dict()
    different = names_that_differ(own_state, state)
    if different:
        name = different[0]
        raise ValueError(
            f"weights do not fit {expected}: {len(different)} tensors differ; "
            f"{name} has shape {_shape_of(name, state)}, not {_shape_of(name, own_state)}"
        )
    module.load_state_dict(state, assign=assign)


def _shape_of(name: str, state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape of a tensor; None where the state dict lacks it."""
    if name not in state:
        return None
    return tuple(state[name].shape)

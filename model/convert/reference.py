"""Converts the weights of the released DualToken code (a checkpoint's state dict) to ours, and back.

The released code keeps a codebook once per depth, the same tensor where depths share one, with a last row of
zeros that is never chosen. Beside each attention it keeps a bias of zeros for the keys. Ours has neither. Its
text tower is not part of the tokenizer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.sizes import least_weights
from dualtoken.model.config.tokenizer import TokenizerConfig, TowerConfig
from dualtoken.model.config.transformer_decoder import TransformerDecoderConfig
from dualtoken.model.convert.reference_names import convert_state_dict, tokenizer_mappings
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

_TEXT = re.compile(r"siglip_model\.(text_model\.|logit_(scale|bias)$)")
_CODEBOOK = re.compile(r"(quantizer_(?:pix|sem)\.codebooks)\.(\d+)\.(.+)")
_FIXED_SETTINGS = {
    "shared_codebook": False,
    "pixel_encoder": None,
    "causal_pixel": True,
    "causal_semantic": True,
}
"""Values of our settings that the released code has no setting for."""


def from_reference(state: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """Return the state dict that `DualTokenizer.load_state_dict` takes.

    Raises ValueError, a line per key, for keys that are missing, misshapen or unexpected, and for codebooks
    that differ from depth to depth where the configuration has one for all.
    """
    refuse_older_layouts(state)
    _require_room(config, state)
    state = {name: tensor for name, tensor in state.items() if not _TEXT.match(name)}
    own_state = _meta_state_dict(config)
    _check_keys(state, to_reference(own_state, config))
    converted = convert_state_dict(
        _with_joined_codebooks(state, config), tokenizer_mappings(own_state, config.tower.depth)
    )
    weights = {}
    for name, tensor in converted.items():
        is_codebook = name.endswith(".codes")
        unpadded = (
            tensor[..., :-1, :].clone() if is_codebook else tensor
        )  # the last row of a codebook pads it
        # Checkpoints in half precision come out in float32, as models are.
        weights[name] = unpadded.float()
    return weights


def to_reference(state: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """Return a tokenizer's weights under the released code's names: all of its keys but the text tower's.

    Raises ValueError for a tokenizer that the released code cannot express.
    """
    problem = _not_in_reference(config)
    if problem:
        raise ValueError(f"{problem}: it cannot be written as the released code's checkpoint")
    mappings = tokenizer_mappings(state, config.tower.depth)
    converted = convert_state_dict(state, mappings, to_external=True)
    return _with_redundant_tensors(converted, config)


def _not_in_reference(config: TokenizerConfig) -> str | None:
    """Describe the first setting of a tokenizer that the released code cannot express, or return None."""
    if isinstance(config.decoder, TransformerDecoderConfig):
        return "decoder.kind=transformer"
    if not isinstance(config.tower, TowerConfig):
        return (
            f"tower={config.tower!r}, where the released code has SigLIP towers described by their shape only"
        )
    for stream in ("pixel", "semantic"):
        quantizer = getattr(config, stream)
        if not isinstance(quantizer, QuantizerConfig):
            return f"{stream}={quantizer!r}, where the released code has residual quantisers"
        if quantizer.beam != 1:
            return f"{stream}.beam={quantizer.beam}, where the released code takes the nearest code"
    for name, fixed in _FIXED_SETTINGS.items():
        value = getattr(config, name)
        if value != fixed:
            return f"{name}={value!r}, where the released code has {fixed!r}"
    return None


def _with_redundant_tensors(state: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """Add the tensors that only the released code keeps: codebooks per depth, and biases of zeros."""
    complete = {}
    for name, tensor in state.items():
        codebook = _CODEBOOK.fullmatch(name)
        if codebook is None:
            complete[name] = tensor
        else:
            prefix, _, buffer = codebook.groups()
            padded = tensor
            if buffer == "weight":
                padded = torch.cat((tensor, torch.zeros_like(tensor[..., :1, :])), dim=-2)
            quantizer = _quantizer_of(name, config)
            for level in range(quantizer.depth):
                # Copies, since a file of safetensors refuses tensors that share memory.
                complete[f"{prefix}.{level}.{buffer}"] = (
                    padded if quantizer.shared else padded[level]
                ).clone()
        if name.endswith(".attn.q_bias"):
            complete[name.replace("q_bias", "zero_k_bias")] = torch.zeros_like(tensor)
    return complete


def _with_joined_codebooks(state: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """Return the tensors with those of all depths' codebooks under the name of the first.

    That is one codebook where depths share it, and else one per depth, stacked.
    """
    joined = {}
    for name, tensor in state.items():
        codebook = _CODEBOOK.fullmatch(name)
        if codebook is None:
            joined[name] = tensor
        elif codebook[2] == "0":
            quantizer = _quantizer_of(name, config)
            depths = [state[f"{codebook[1]}.{depth}.{codebook[3]}"] for depth in range(quantizer.depth)]
            if quantizer.shared:
                _require_equal(name, depths)
                joined[name] = tensor
            else:
                joined[name] = torch.stack(depths)
    return joined


def _quantizer_of(name: str, config: TokenizerConfig) -> QuantizerConfig:
    """Return the configuration of the codebook that a key of the released code belongs to."""
    quantizer = config.pixel if name.startswith("quantizer_pix.") else config.semantic
    assert isinstance(quantizer, QuantizerConfig)
    return quantizer


def _require_equal(name: str, depths: Sequence[Tensor]) -> None:
    for depth, tensor in enumerate(depths):
        if not torch.equal(tensor, depths[0]):
            other = name.replace(".codebooks.0.", f".codebooks.{depth}.")
            raise ValueError(
                f"{other} differs from {name}: shared_codebook=true says that depths share a codebook; "
                "give the configuration that the checkpoint was trained with"
            )


def _require_room(config: TokenizerConfig, state: Mapping[str, Tensor]) -> None:
    """Refuse a configuration of more weights than there are, before anything of its size is made."""
    num_weights = sum(tensor.numel() for tensor in state.values())
    if least_weights(config) > num_weights:
        raise ValueError(
            f"the configuration asks for {least_weights(config):,} weights or more, and the checkpoint has "
            f"{num_weights:,}: they do not belong together"
        )


def _meta_state_dict(config: TokenizerConfig) -> dict[str, Tensor]:
    """Return a tokenizer's state dict of shapes alone."""
    with torch.device("meta"):
        return DualTokenizer(config).state_dict()


def refuse_older_layouts(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the layout, for checkpoints of the released code's networks before April 2026.

    Those networks differ from the one of April 2026, which is the one supported.
    """
    layout = _older_layout(state)
    if layout is not None:
        raise ValueError(
            f"the checkpoint has the layout of {layout}: that network is another one and is not supported; "
            "use a checkpoint of April 2026 or later"
        )


def _older_layout(state: Mapping[str, Tensor]) -> str | None:
    """Return the date and marks of an older network's layout, or None."""
    modules = {name.split(".")[0] for name in state}
    if modules & {"quantizer", "prequant_visual", "postquant_visual"}:
        return "2025 (quantizer.*, prequant_visual.*: convolutions around codes as wide as the tower)"
    lacks_projection = "quantizer_sem" in modules and "prequant_sem" not in modules
    if modules & {"quantizer_semantic", "quantizer_pixel"} or lacks_projection:
        return "March 2026 (semantic tokens are quantised as they are, and seen both ways after it)"
    return None


class _KeyProblems(NamedTuple):
    """Keys of a checkpoint that do not fit a configuration, each with its shape."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def _check_keys(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError that names each key that is not as expected."""
    problems = _key_problems(found, expected)
    if not any(problems):
        return
    counts = []
    lines = []
    for kind, texts in problems._asdict().items():
        counts.append(f"{len(texts)} {kind}")
        lines += [f"{kind}: {text}" for text in sorted(texts)]
    summary = f"the checkpoint does not fit the configuration: of its keys {', '.join(counts)}"
    raise ValueError("\n".join([summary, *lines]))


def _key_problems(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> _KeyProblems:
    problems = _KeyProblems([], [], [])
    for name in found.keys() | expected.keys():
        if name not in found:
            problems.missing.append(f"{name} {tuple(expected[name].shape)}")
        elif name not in expected:
            problems.unexpected.append(f"{name} {tuple(found[name].shape)}")
        elif found[name].shape != expected[name].shape:
            problems.misshapen.append(f"{name} {tuple(found[name].shape)}, not {tuple(expected[name].shape)}")
    return problems

"""Weights of the released DualToken code (a checkpoint's state dict) under our names, and ours under its.

The released code keeps a codebook once per depth, all the same tensor, with a last row of zeros that is never chosen, and
beside each attention a bias of zeros for the keys; ours has neither. Its text tower is not part of the tokenizer.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from dualtoken.model.config.quantizer import QuantizerConfig
from dualtoken.model.config.tokenizer import TokenizerConfig, TowerConfig
from dualtoken.model.convert.reference_names import rearrange, tokenizer_matches
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

_TEXT = re.compile(r"siglip_model\.(text_model\.|logit_(scale|bias)$)")
_CODEBOOK = re.compile(r"(quantizer_(?:pix|sem)\.codebooks)\.(\d+)\.(.+)")


def from_reference(state: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """Return what `DualTokenizer.load_state_dict` takes.

    Raises ValueError, a line per key, for keys that are missing, misshapen or unexpected, and for codebooks that differ from
    depth to depth, which ours share.
    """
    refuse_older_layouts(state)
    state = {name: tensor for name, tensor in state.items() if not _TEXT.match(name)}
    ours = _on_meta(config)
    _check_keys(state, to_reference(ours, config))
    _check_depths_share_a_codebook(state)
    single = {
        name: tensor
        for name, tensor in state.items()
        if not (match := _CODEBOOK.fullmatch(name)) or match[2] == "0"
    }
    arranged = rearrange(single, tokenizer_matches(ours, config.tower.depth))
    # The last row of a codebook pads it; checkpoints in half precision come out in float32, as models are.
    return {
        name: (tensor[:-1].clone() if name.endswith(".codes") else tensor).float()
        for name, tensor in arranged.items()
    }


def to_reference(state: Mapping[str, Tensor], config: TokenizerConfig) -> dict[str, Tensor]:
    """Return a tokenizer's weights under the released code's names: all of its keys but the text tower's.

    Raises ValueError for a tokenizer that the released code cannot express.
    """
    if problem := _not_in_reference(config):
        raise ValueError(f"{problem}: it cannot be written as the released code's checkpoint")
    named = rearrange(state, tokenizer_matches(state, config.tower.depth), back=True)
    return dict(_completed(named, config.pixel.depth))


def _not_in_reference(config: TokenizerConfig) -> str | None:
    """Say what of a tokenizer the released code has no like of."""
    if not isinstance(config.tower, TowerConfig):
        return (
            f"tower={config.tower!r}, where the released code has SigLIP towers described by their shape only"
        )
    for stream in ("pixel", "semantic"):
        quantizer = getattr(config, stream)
        if not isinstance(quantizer, QuantizerConfig) or not quantizer.shared:
            return f"{stream}={quantizer!r}, where the released code has residual quantisers with a codebook shared by all depths"
    others = {"shared_codebook": False, "pixel_encoder": None, "causal_pixel": True, "causal_semantic": True}
    differ = [name for name, value in others.items() if getattr(config, name) != value]
    return (
        f"{differ[0]}={getattr(config, differ[0])!r}, where the released code has {others[differ[0]]!r}"
        if differ
        else None
    )


def _completed(named: Mapping[str, Tensor], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Add what the released code keeps beside what ours does."""
    for name, tensor in named.items():
        if match := _CODEBOOK.fullmatch(name):
            padded = torch.cat((tensor, torch.zeros_like(tensor[:1]))) if match[3] == "weight" else tensor
            # A file of safetensors refuses tensors that share memory.
            yield from ((f"{match[1]}.{level}.{match[3]}", padded.clone()) for level in range(depth))
        else:
            yield name, tensor
        if name.endswith(".attn.q_bias"):
            yield name.replace("q_bias", "zero_k_bias"), torch.zeros_like(tensor)


def _on_meta(config: TokenizerConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return DualTokenizer(config).state_dict()


def refuse_older_layouts(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError, by name, for checkpoints of the released code's earlier networks, which are others than that of April 2026."""
    heads = {name.split(".")[0] for name in state}
    older = {
        "2025 (quantizer.*, prequant_visual.*: convolutions around codes as wide as the tower)": bool(
            heads & {"quantizer", "prequant_visual", "postquant_visual"}
        ),
        "March 2026 (semantic tokens are quantised as they are, and seen both ways after it)": bool(
            heads & {"quantizer_semantic", "quantizer_pixel"}
            or ("quantizer_sem" in heads and "prequant_sem" not in heads)
        ),
    }
    for layout, found in older.items():
        if found:
            raise ValueError(
                f"the checkpoint has the layout of {layout}: that network is another one and is not supported; "
                "use a checkpoint of April 2026 or later"
            )


def _check_keys(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shapes, wanted = (
        {name: tuple(tensor.shape) for name, tensor in state.items()} for state in (found, expected)
    )
    problems = {
        "missing": [f"{name} {wanted[name]}" for name in wanted.keys() - shapes.keys()],
        "unexpected": [f"{name} {shapes[name]}" for name in shapes.keys() - wanted.keys()],
        "misshapen": [
            f"{name} {shapes[name]}, not {wanted[name]}"
            for name in wanted.keys() & shapes.keys()
            if shapes[name] != wanted[name]
        ],
    }
    if not any(problems.values()):
        return
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in problems.items())
    lines = [f"{kind}: {text}" for kind, texts in problems.items() for text in sorted(texts)]
    raise ValueError(
        "\n".join([f"the checkpoint does not fit the configuration: of its keys {counts}", *lines])
    )


def _check_depths_share_a_codebook(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        first = _CODEBOOK.sub(r"\1.0.\3", name)
        if first != name and not torch.equal(tensor, state[first]):
            raise ValueError(
                f"{name} differs from {first}: only checkpoints with shared_codebook=true can be converted"
            )

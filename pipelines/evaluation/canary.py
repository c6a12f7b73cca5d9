"""The canary: a small fixed tokenizer with its teacher, whose scores change only with evaluator and machine.

Nothing trains it. Weights are drawn by a counter-based generator from the hash of each tensor's name, so that
they are the same with every version of PyTorch.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualtoken.model.config.teacher import TeacherConfig, TextConfig
from dualtoken.model.config.tokenizer import TokenizerConfig, TowerConfig
from dualtoken.model.teacher.teacher import build_teacher, save_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer

_TOWER = {"patch_size": 8, "width": 48, "depth": 3, "num_heads": 3, "mlp_width": 96}
_IMAGE_SIZE = 64
"""Pixels a side: those of scenes, so that objects can be looked for in reconstructions."""
TOKENIZER = TokenizerConfig.model_validate(
    {
        "image_size": _IMAGE_SIZE,
        "tower": _TOWER,
        "pixel_block": 1,
        "semantic_block": 2,
        "pixel": {"num_codes": 64, "depth": 2, "width": 8},
        "semantic": {"num_codes": 64, "depth": 2, "width": 8},
        "decoder": {
            "kind": "transformer",
            "latent_size": 8,
            "patch_size": 8,
            "width": 32,
            "depth": 1,
            "num_heads": 2,
            "mlp_width": 64,
        },
    }
)
TEACHER = TeacherConfig(
    image_size=_IMAGE_SIZE,
    tower=TowerConfig.model_validate(_TOWER),
    text=TextConfig.model_validate({"context_length": 32, "width": 32, "depth": 1, "num_heads": 2}),
)


def write_canary(folder: Path) -> tuple[Path, Path]:
    """Write the canary below a folder; return the folders of its tokenizer and of its teacher."""
    tokenizer = DualTokenizer(TOKENIZER)
    tokenizer.load_state_dict(drawn_state(tokenizer.state_dict()))
    tokenizer.save_pretrained(folder / "tokenizer")
    teacher = build_teacher(TEACHER)
    teacher.load_state_dict(drawn_state(teacher.state_dict()))
    save_teacher(teacher, TEACHER, folder / "teacher")
    return folder / "tokenizer", folder / "teacher"


def drawn_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return new values for a state: matrices by chance, the gains of norms one, other vectors zero."""
    drawn: dict[str, Tensor] = {}
    for name, value in state.items():
        if not value.is_floating_point() or value.ndim == 0:
            drawn[name] = value
        elif value.ndim == 1:
            drawn[name] = torch.ones_like(value) if name.endswith("weight") else torch.zeros_like(value)
        else:
            drawn[name] = _draw(name, value)
    return drawn


def _draw(name: str, value: Tensor) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    words = np.random.Generator(np.random.Philox(key=seed)).integers(0, 2**24, value.numel(), np.int64)
    # Whole numbers of 24 bits are exact in float32, and uniform ones need no libm, whose last bits differ.
    uniform = torch.from_numpy(words.astype(np.float32)) / 2**23 - 1
    fan_in = value[0].numel()
    return (uniform * (3 / fan_in) ** 0.5).view_as(value)

"""The canary of unified models: one of fixed weights on the canary's tokenizer.

It was taught a little about generated scenes, once (`tests/helpers/teach_canary.py`). A model that knows
nothing answers nothing right and describes nothing: no fault in how texts are scored would move its scores.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from dualtoken.model.config.mllm import MllmConfig
from dualtoken.model.mllm.build import build_mllm
from dualtoken.model.mllm.saved import save_mllm, vision_digest
from dualtoken.model.mllm.text_tokenizer import train_text_tokenizer
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.evaluation.canary import drawn_state
from dualtoken.pipelines.images.scene_captions import COLOURS, QUADRANTS, SHAPES, SIZES

_VOCABULARY = 300
MLLM = MllmConfig.model_validate(
    {
        "trunk": {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64, "vocabulary": _VOCABULARY},
        "head": {"width": 16, "num_layers": 1, "num_heads": 1},
        "visual_position": "learned",
    }
)


WEIGHTS = Path(__file__).with_name("canary_mllm.safetensors")
"""Its weights in half precision, without the tokenizer's."""


def write_canary_mllm(folder: Path, tokenizer: Path) -> Path:
    """Write the canary on its tokenizer into a folder below `folder`, and return it."""
    stored = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    return _write(folder, tokenizer, stored)


def write_untaught(folder: Path, tokenizer: Path) -> Path:
    """Write it as it was before it was taught, with drawn weights."""
    return _write(folder, tokenizer, None)


def is_stored(name: str) -> bool:
    """Tell whether a weight is the canary's own: tables of codes are the tokenizer's, the text head tied."""
    return ".codebooks." not in name and name != "lm_head.weight"


def _write(folder: Path, tokenizer: Path, stored: Mapping[str, Tensor] | None) -> Path:
    text = train_text_tokenizer([*SHAPES, *COLOURS, *SIZES, *QUADRANTS], _VOCABULARY)
    model = build_mllm(MLLM, DualTokenizer.from_pretrained(tokenizer), vision_digest(tokenizer), text)
    own = {name: value for name, value in model.state_dict().items() if is_stored(name)}
    if stored is None:
        stored = drawn_state(own)
    assert stored.keys() == own.keys(), "the canary's weights are those of its shape"
    model.load_state_dict(stored, strict=False)
    save_mllm(folder / "mllm", model, text, tokenizer)
    return folder / "mllm"

"""The canary of unified models: one of fixed weights on the canary's tokenizer, which nothing trains."""

from pathlib import Path

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


def write_canary_mllm(folder: Path, tokenizer: Path) -> Path:
    """Write the canary on its tokenizer into a folder below `folder`, and return it."""
    text = train_text_tokenizer([*SHAPES, *COLOURS, *SIZES, *QUADRANTS], _VOCABULARY)
    model = build_mllm(MLLM, DualTokenizer.from_pretrained(tokenizer), vision_digest(tokenizer), text)
    state = model.state_dict()
    # The tables of codes are the tokenizer's.
    drawn = {name: value for name, value in drawn_state(state).items() if ".codebooks." not in name}
    model.load_state_dict(state | drawn)
    save_mllm(folder / "mllm", model, text, tokenizer)
    return folder / "mllm"

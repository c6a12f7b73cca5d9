"""The unified model of text and images: trunk, projector, depth heads, losses, training and generation.

May import the rooms before it in `ROOMS` (tests/test_imports.py), up to `teacher`. Touches local disk to read
and write weights, and the network for a named trunk. Importing it makes the model known to transformers'
`Auto` classes, so that no code of a model's folder is ever run.
"""

from dualtoken.model.config.mllm import MODEL_TYPE
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.configuration import DualTokenMllmConfig
from dualtoken.model.mllm.processing import DualTokenProcessor
from dualtoken.model.mllm.saved import OpenedMllm, open_mllm, save_mllm
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
    )

AutoConfig.register(MODEL_TYPE, DualTokenMllmConfig, exist_ok=True)
for _auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto.register(DualTokenMllmConfig, DualTokenForConditionalGeneration, exist_ok=True)
AutoProcessor.register(DualTokenMllmConfig, DualTokenProcessor, exist_ok=True)

__all__ = [
    "DualTokenForConditionalGeneration",
    "DualTokenMllmConfig",
    "DualTokenProcessor",
    "OpenedMllm",
    "open_mllm",
    "save_mllm",
]

"""The tokenizer: `DualTokenizer` and the networks that it is made of.

May import `config`, `precision`, `hub`, `vision` and `quantize` of `model`. It computes on the device that
the model is on. `from_pretrained` and `push_to_hub` touch the disk and, for a hub repository, the network;
nothing else here does.
"""

from dualtoken.model.tokenizer.dual_tokenizer import Codes, DualTokenizer, SemanticFeatures, TokenizerOutput

__all__ = ["Codes", "DualTokenizer", "SemanticFeatures", "TokenizerOutput"]

"""Bounds the text that a tokenizer of open_clip reads: its BPE takes the square of a word's length.

A model reads the first L tokens of a text, so that text behind what L of the longest tokens can hold decides
nothing. The bound counts letters after the tokenizer's own cleaning, which may remove any number of them.
"""

from typing import Any

from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from open_clip.tokenizer import SimpleTokenizer

_MORE_TOKENS = 16
"""Tokens beyond a model's own that are read: a cut changes how the letters just before it are merged."""


def bound_text(tokenizer: Any) -> Any:  # noqa: ANN401  (open_clip's tokenizers share no type)
    """Make a tokenizer read no more of a text than its model does, and return it."""
    if not hasattr(tokenizer, "clean_fn") or not tokenizer.context_length:
        return tokenizer
    most = most_letters(tokenizer, tokenizer.context_length)
    clean = tokenizer.clean_fn

    def clean_and_cut(text: str) -> str:
        return clean(text)[:most]

    tokenizer.clean_fn = clean_and_cut
    return tokenizer


def most_letters(tokenizer: Any, context_length: int) -> int:  # noqa: ANN401
    """Return the number of letters, after cleaning, that hold all tokens of a model's context."""
    if isinstance(tokenizer, SimpleTokenizer):
        vocabulary = tokenizer.encoder
    else:
        vocabulary = tokenizer.tokenizer.get_vocab()
    longest = max(map(len, vocabulary))
    # A space stands between two words, and belongs to neither of their tokens.
    return (context_length + _MORE_TOKENS) * (longest + 1)

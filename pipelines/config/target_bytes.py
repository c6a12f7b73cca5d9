"""Bytes of a sample's teacher targets, by what is stored; imports neither torch nor ray."""

from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.pipelines.config.teacher import StoredTargets

_KEY_AND_SIMILARITY = 20


def target_bytes(tokenizer: TokenizerConfig, stored: StoredTargets) -> int:
    """Return the bytes of one sample's row of a target file."""
    width = tokenizer.tower.width
    pooled_and_embeddings = 3 * width * 4 + _KEY_AND_SIMILARITY
    return pooled_and_embeddings + dense_bytes(stored, tokenizer.grid_size**2, width)


def dense_bytes(stored: StoredTargets, num_tokens: int, width: int) -> int:
    """Return the bytes of one sample's tokens: float16, or int8 with a float32 scale for each."""
    if stored == "dense_float16":
        return 2 * num_tokens * width
    if stored == "dense_int8":
        return num_tokens * (width + 4)
    return 0

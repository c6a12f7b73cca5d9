"""Reads captions of the scenes' grammar back: which objects a caption names, and where."""

import re
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from dualtoken.pipelines.images.scene_captions import (
    COLOURS,
    NOUNS,
    PLACES,
    QUADRANTS,
    SENTENCES,
    SHAPES,
    SIZE_WORDS,
)


class DescribedObject(NamedTuple):
    """An object as words name it."""

    shape: str
    colour: str
    size: str
    quadrant: str


def parse_caption(caption: str) -> tuple[DescribedObject, DescribedObject] | None:
    """Return the two objects that a caption names, in its order; None where the grammar has no such one."""
    for sentence in _sentences():
        match = sentence.fullmatch(" ".join(caption.split()))
        if match:
            return _object(match, "a"), _object(match, "b")
    return None


@cache
def _sentences() -> tuple[re.Pattern[str], ...]:
    """Return a pattern for each sentence, with groups such as `a_size0` for the words of each object."""
    parts = {name: _phrase(name, NOUNS) for name in ("a", "b")}
    parts |= {f"in_{name}": _phrase(name, PLACES) for name in ("a", "b")}
    return tuple(re.compile(sentence.format(**parts)) for sentence in SENTENCES)


def _phrase(name: str, forms: Iterable[str]) -> str:
    """Return a pattern of one object's noun or place, in any of its forms."""
    sizes = [word for words in SIZE_WORDS.values() for word in words]
    words = {"size": sizes, "colour": COLOURS, "shape": SHAPES, "quadrant": QUADRANTS}
    patterns: list[str] = []
    for number, form in enumerate(forms):
        groups = {key: f"(?P<{name}_{key}{number}>{'|'.join(options)})" for key, options in words.items()}
        patterns.append(form.format(**groups))
    return f"(?:{'|'.join(patterns)})"


def _object(match: re.Match[str], name: str) -> DescribedObject:
    """Return the object of a match; of each word's groups the one of the form that was there has matched."""
    words: dict[str, str] = {}
    for group, word in match.groupdict().items():
        owner, _, key = group.rstrip("0123456789").partition("_")
        if owner == name and word is not None:
            words[key] = word
    size = next(size for size, spellings in SIZE_WORDS.items() if words["size"] in spellings)
    return DescribedObject(**{**words, "size": size})

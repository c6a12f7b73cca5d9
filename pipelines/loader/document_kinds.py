"""The kinds of documents that a sample, an image with its texts, can become; N documents.

| kind | positions |
|---|---|
| `draw` | [start] caption, image_start, image, image_end [end] |
| `describe` | [start] image_start, image, image_end, [assistant] caption [turn_end] [end] |
| `answer` | [start] image_start, image, image_end, turns [end] |
| `text` | [start] caption [end] |

A turn is [user] question [assistant] answer [turn_end], an image its H * W positions in raster order. What
stands in brackets is a marker of none or more ids (`Markers`).

Predicted are captions that describe or stand alone, answers, and the markers after them; nothing of `draw`,
unless the plan has `prompt_targets`. Never predicted are image_end, which comes after every image, and the
first position of a document.
"""

from enum import StrEnum
from typing import Any

import numpy as np


class DocumentKind(StrEnum):
    """Kind of a document, by what it teaches."""

    DRAW = "draw"
    """Caption, then image."""
    DESCRIBE = "describe"
    """Image, then caption."""
    ANSWER = "answer"
    """Image, then questions with their answers."""
    TEXT = "text"
    """Caption alone."""


KINDS = tuple(DocumentKind)
"""A kind's number in arrays is its place here."""
DRAW, DESCRIBE, ANSWER, TEXT = range(len(KINDS))
Kinds = np.ndarray[Any, np.dtype[np.int8]]
"""(N,), numbers of kinds."""
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def is_image_first(kinds: Kinds) -> Mask:
    """Return which documents have their image before their text, (N,)."""
    return (kinds == DESCRIBE) | (kinds == ANSWER)

"""Text is cut before BPE reads it, and the ids are those of the whole text."""

import random
import time

from dualtoken.model.teacher.text_tokenizer import bound_text, most_letters
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from open_clip.tokenizer import SimpleTokenizer

CONTEXT = 8
"""Tokens of a model, few so that uncut texts can be read here at all."""
LONGEST = 3_000


def texts() -> list[str]:
    letters = random.Random(0)
    alphabets = ["a", "ab", "abcdefghijklmnopqrstuvwxyz", "é漢🙂", "aeiou nst", "!?-_", "0123456789", "haha"]
    made = ["".join(letters.choices(alphabet, k=LONGEST)) for alphabet in alphabets]
    made += ["the " * LONGEST, "a" * LONGEST + " dog", "!" * LONGEST + " dog", " " * 9 * LONGEST + "a dog"]
    return [*made, "&amp;amp;" * LONGEST + "dog", "supercalifragilistic" * 150]


def test_ids_of_cut_text_are_those_of_the_whole() -> None:
    whole = SimpleTokenizer(context_length=CONTEXT)
    cut = bound_text(SimpleTokenizer(context_length=CONTEXT))
    assert most_letters(whole, CONTEXT) < LONGEST
    for text in texts():
        assert cut([text]).tolist() == whole([text]).tolist(), text[:40]


def test_one_word_of_any_length_takes_no_longer_than_the_context_does() -> None:
    tokenizer = bound_text(SimpleTokenizer(context_length=32))
    started = time.process_time()
    tokenizer(["".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=24_000))])
    assert time.process_time() - started < 2  # 9 s of it uncut

"""What is said of a scene: the attribute words, the caption grammar and the questions.

Every caption gives size, colour, shape and place of both objects, in at most 26 words; wording and order vary.
"""

from collections.abc import Sequence
from typing import Protocol

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "large")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_NOUNS = (
    "a {size} {colour} {shape}",
    "a {size} {shape} that is {colour}",
    "a {colour} {shape} that is {size}",
)
_PLACES = ("at the {quadrant}", "in the {quadrant}", "in the {quadrant} corner")
_SENTENCES = (
    "{a} {in_a} and {b} {in_b}",
    "{a} {in_a}, {b} {in_b}",
    "{in_a} {a}, {in_b} {b}",
    "there is {a} {in_a} and {b} {in_b}",
    "{in_a} is {a} and {in_b} is {b}",
    "{b} is {in_b} and {a} is {in_a}",
    "a picture of {a} {in_a} with {b} {in_b}",
)


class Described(Protocol):
    """An object as far as words go."""

    @property
    def shape(self) -> str:
        """One of `SHAPES`."""
        ...

    @property
    def colour(self) -> str:
        """One of `COLOURS`."""
        ...

    @property
    def size(self) -> str:
        """One of `SIZES`."""
        ...

    @property
    def quadrant(self) -> str:
        """One of `QUADRANTS`."""
        ...


class _Choices:
    """Digits of a random word, in mixed radix."""

    def __init__(self, word: int) -> None:
        self._word = word

    def below(self, stop: int) -> int:
        self._word, digit = divmod(self._word, stop)
        return digit

    def among(self, options: Sequence[str]) -> str:
        return options[self.below(len(options))]


def _noun(thing: Described, form: str, size: str) -> str:
    return form.format(size=size, colour=thing.colour, shape=thing.shape)


def canonical_phrase(objects: Sequence[Described]) -> str:
    """Say: a small red circle at the top left and a large blue square at the bottom right."""
    a, b = (_noun(thing, _NOUNS[0], thing.size) for thing in objects)
    in_a, in_b = (_PLACES[0].format(quadrant=thing.quadrant) for thing in objects)
    return _SENTENCES[0].format(a=a, b=b, in_a=in_a, in_b=in_b)


def compose(objects: Sequence[Described], wording: int) -> str:
    """Say a scene in the phrasing that 64 random bits choose; half are canonical, in either order of objects."""
    choices = _Choices(wording)
    if choices.below(2):
        objects = objects[::-1]
    if not choices.below(2):
        return canonical_phrase(objects)
    place, sentence = choices.among(_PLACES), choices.among(_SENTENCES)
    # Half of the nouns have the plain form, so that the longer ones stay the exception.
    nouns = [
        _noun(thing, _NOUNS[max(0, choices.below(6) - 3)], choices.among(_SIZE_WORDS[thing.size]))
        for thing in objects
    ]
    in_a, in_b = (place.format(quadrant=thing.quadrant) for thing in objects)
    return sentence.format(a=nouns[0], b=nouns[1], in_a=in_a, in_b=in_b)


def questions_about(objects: Sequence[Described], num_dots: int, wording: int) -> list[dict[str, str]]:
    """Ask about each object by its place, then for places, counts and the dots; answers are a few words each."""
    pairs: list[tuple[str, str, str]] = []
    for thing in objects:
        pairs += [
            ("shape", f"what shape is at the {thing.quadrant}", thing.shape),
            ("colour", f"what colour is the {thing.shape} at the {thing.quadrant}", thing.colour),
            ("size", f"what size is the {thing.shape} at the {thing.quadrant}", thing.size),
        ]
    names = [_noun(thing, "{size} {colour} {shape}", thing.size) for thing in objects]
    if names[0] != names[1]:
        pairs += [
            ("place", f"where is the {name}", thing.quadrant)
            for name, thing in zip(names, objects, strict=True)
        ]
    choices = _Choices(wording)
    for values, asked, seen in (
        (COLOURS, "how many {} objects are there", [thing.colour for thing in objects]),
        (SIZES, "how many {} objects are there", [thing.size for thing in objects]),
        (SHAPES, "how many objects are a {}", [thing.shape for thing in objects]),
    ):
        # Half the time about a value that is there, else most counts would be zero.
        value = seen[choices.below(2)] if choices.below(2) else choices.among(values)
        pairs.append(("count", asked.format(value), _NUMBERS[seen.count(value)]))
    pairs.append(("dots", "how many dots are there", _NUMBERS[num_dots]))
    return [{"kind": kind, "question": f"{question}?", "answer": answer} for kind, question, answer in pairs]

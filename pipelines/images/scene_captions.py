"""Words of the generated scenes: attribute names, the caption grammar, and questions with answers.

Every caption gives size, colour, shape and place of both objects, in at most 26 words; wording and order
vary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "large")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")

SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
"""Words of each size."""
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
NOUNS = (
    "a {size} {colour} {shape}",
    "a {size} {shape} that is {colour}",
    "a {colour} {shape} that is {size}",
)
"""Forms of an object's noun, the plain one first."""
PLACES = ("at the {quadrant}", "in the {quadrant}", "in the {quadrant} corner")
"""Forms of an object's place."""
SENTENCES = (
    "{a} {in_a} and {b} {in_b}",
    "{a} {in_a}, {b} {in_b}",
    "{in_a} {a}, {in_b} {b}",
    "there is {a} {in_a} and {b} {in_b}",
    "{in_a} is {a} and {in_b} is {b}",
    "{b} is {in_b} and {a} is {in_a}",
    "a picture of {a} {in_a} with {b} {in_b}",
)
"""Sentences of two objects, the canonical one first."""


class Described(Protocol):
    """The attributes of an object that captions and questions name."""

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
    """Choices that one random word makes: its digits in mixed radix."""

    def __init__(self, word: int) -> None:
        self._word = word

    def below(self, stop: int) -> int:
        """Return the next number in [0, stop)."""
        self._word, digit = divmod(self._word, stop)
        return digit

    def among(self, options: Sequence[str]) -> str:
        """Return one of the options."""
        return options[self.below(len(options))]


class Question(NamedTuple):
    """A question about a scene."""

    kind: str
    """Subject: shape, colour, size, place, count or dots."""
    text: str
    """Wording, without the question mark."""
    answer: str


def _noun(described: Described, form: str, size_word: str) -> str:
    return form.format(size=size_word, colour=described.colour, shape=described.shape)


def canonical_phrase(objects: Sequence[Described]) -> str:
    """Return the fixed phrasing: a small red ring at the top left and a large blue cross at the top right."""
    first, second = objects
    return SENTENCES[0].format(
        a=_noun(first, NOUNS[0], first.size),
        b=_noun(second, NOUNS[0], second.size),
        in_a=PLACES[0].format(quadrant=first.quadrant),
        in_b=PLACES[0].format(quadrant=second.quadrant),
    )


def compose(objects: Sequence[Described], wording: int) -> str:
    """Describe a scene in the phrasing that 64 random bits choose.

    Half of the captions are canonical, in either order of the objects.
    """
    # The order of the choices decides the caption.
    choices = _Choices(wording)
    if choices.below(2):
        objects = objects[::-1]
    if not choices.below(2):
        return canonical_phrase(objects)
    place = choices.among(PLACES)
    sentence = choices.among(SENTENCES)
    first, second = objects
    return sentence.format(
        a=_varied_noun(first, choices),
        b=_varied_noun(second, choices),
        in_a=place.format(quadrant=first.quadrant),
        in_b=place.format(quadrant=second.quadrant),
    )


def _varied_noun(described: Described, choices: _Choices) -> str:
    # Half of the nouns have the plain form, so that the longer ones stay the exception.
    form = NOUNS[max(0, choices.below(6) - 3)]
    return _noun(described, form, choices.among(SIZE_WORDS[described.size]))


def questions_about(objects: Sequence[Described], num_dots: int, wording: int) -> list[dict[str, str]]:
    """Ask about each object by its quadrant, then for places, counts and dots; answers have few words."""
    asked = [
        *_attribute_questions(objects),
        *_place_questions(objects),
        *_count_questions(objects, _Choices(wording)),
        Question("dots", "how many dots are there", _NUMBERS[num_dots]),
    ]
    return [{"kind": kind, "question": f"{text}?", "answer": answer} for kind, text, answer in asked]


def _attribute_questions(objects: Sequence[Described]) -> Iterator[Question]:
    for described in objects:
        shape = described.shape
        quadrant = described.quadrant
        yield Question("shape", f"what shape is at the {quadrant}", shape)
        yield Question("colour", f"what colour is the {shape} at the {quadrant}", described.colour)
        yield Question("size", f"what size is the {shape} at the {quadrant}", described.size)


def _place_questions(objects: Sequence[Described]) -> Iterator[Question]:
    """Ask where each object is, unless both would be asked for by the same words."""
    names = [_noun(described, "{size} {colour} {shape}", described.size) for described in objects]
    if names[0] == names[1]:
        return
    for name, described in zip(names, objects, strict=True):
        yield Question("place", f"where is the {name}", described.quadrant)


def _count_questions(objects: Sequence[Described], choices: _Choices) -> Iterator[Question]:
    first, second = objects
    # The order of the rows decides the choices.
    for values, form, present in (
        (COLOURS, "how many {} objects are there", (first.colour, second.colour)),
        (SIZES, "how many {} objects are there", (first.size, second.size)),
        (SHAPES, "how many objects are a {}", (first.shape, second.shape)),
    ):
        value = _counted_value(values, present, choices)
        yield Question("count", form.format(value), _NUMBERS[present.count(value)])


def _counted_value(values: Sequence[str], present: Sequence[str], choices: _Choices) -> str:
    """Choose a value that is there half the time, else any: most counts would be zero otherwise."""
    if choices.below(2):
        return choices.among(present)
    return choices.among(values)

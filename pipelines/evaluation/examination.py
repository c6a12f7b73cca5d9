"""What an examination of the unified model finds: the figures, and what the report shows of them."""

from pydantic import BaseModel, ConfigDict

EXAMINATION = "examination.json"
"""File of the examine stage with all figures."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Record):
    """Share of right answers to one kind of question, or of attributes that came out as told."""

    name: str
    accuracy: float
    shuffled: float
    """The same with the images, or the captions, of other samples: what is right without looking."""
    chance: float
    """Share that guessing gets right."""
    ceiling: float | None = None
    """Share that is right where the oracle reads the tokenizer's own reconstructions; None where it cannot
    tell."""
    unguided: float | None = None
    """Share without guidance, for drawings."""
    count: int
    """Questions, or objects."""


class ShownAnswer(_Record):
    """A question as the report shows it."""

    picture: str
    """Name of the image's PNG."""
    question: str
    answer: str
    expected: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one."""
        return self.answer == self.expected


class ShownDrawing(_Record):
    """One drawing, and what the oracle reads in it; no reading where pictures are no scenes."""

    picture: str
    reading: str = ""
    is_right: bool = False


class ShownCaption(_Record):
    """A caption with its true picture and drawings."""

    caption: str
    truth: str
    """Name of the true image's PNG."""
    description: str
    """The model's own description of the true image."""
    drawings: tuple[ShownDrawing, ...]


class Examination(_Record):
    """All that was found."""

    questions: tuple[Score, ...] = ()
    """Answers by kind of question."""
    descriptions: tuple[Score, ...] = ()
    """Attributes that descriptions name at the right place."""
    described_by_grammar: float | None = None
    """Share of descriptions that are captions of the grammar; None for other corpora."""
    drawings: tuple[Score, ...] = ()
    """Attributes that the oracle reads in drawings at the right place."""
    whole_drawings: float | None = None
    """Share of drawings in which everything is read as told."""
    answers: tuple[ShownAnswer, ...] = ()
    captions: tuple[ShownCaption, ...] = ()

    def mean(self, name: str) -> float:
        """Return the mean accuracy of `questions`, `descriptions` or `drawings`."""
        scores: tuple[Score, ...] = getattr(self, name)
        return sum(score.accuracy for score in scores) / len(scores)

    def picture_names(self) -> list[str]:
        """Return the names of all pictures that are shown, each once."""
        names = [shown.picture for shown in self.answers]
        for shown in self.captions:
            names += [shown.truth, *(drawing.picture for drawing in shown.drawings)]
        return sorted(set(names))

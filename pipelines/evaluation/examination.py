"""What an examination of the unified model finds: the figures, and what the report shows of them."""

from pydantic import BaseModel, ConfigDict

EXAMINATION = "examination.json"
"""File of the examine stage with all figures."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Record):
    """Share of what came out right: answers to one kind of question, attributes, keywords or drawings."""

    name: str
    accuracy: float
    shuffled: float
    """The same with the images, or the captions, of other samples: what is right without looking."""
    chance: float
    """Share that guessing gets right."""
    ceiling: float | None = None
    """Share that the best possible model gets right: what the oracle reads in, or what is nearest to, the
    tokenizer's own reconstructions, or what words of the training captions can say. None where nobody can
    tell."""
    unguided: float | None = None
    """Share without guidance, for drawings."""
    count: int
    """Questions, objects, captions or drawings."""


class MedianRank(_Record):
    """Median place of drawings' own pictures among all pictures by nearness, 1 the nearest."""

    guided: float
    unguided: float
    shuffled: float
    """Of the pictures of other captions."""
    chance: float
    """Of guessing."""
    ceiling: float
    """Of reconstructions."""


class NearestPictures(_Record):
    """How near drawings of held-out captions are to their own pictures, among all held-out pictures."""

    num_pictures: int
    """Pictures that are compared with each drawing."""
    shares: tuple[Score, ...]
    """Shares of the drawings whose own picture is the nearest, or among the nearest ones."""
    median_rank: MedianRank


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
    """Name of the PNG of the true image as its codes give it."""
    original: str | None = None
    """Name of the true image's PNG; None where it is damaged by now."""
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
    keywords: tuple[Score, ...] = ()
    """Keywords that descriptions share with the true captions, where captions have no grammar."""
    nearest: NearestPictures | None = None
    """Nearness of drawings to the true pictures, where no oracle reads them."""
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
            if shown.original is not None:
                names.append(shown.original)
        return sorted(set(names))

"""What a check of datasets comes to: a finding per file that is not as its receipt says."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from dualtoken.infra.storage import join


class FindingKind(StrEnum):
    """How a file is not as it should be."""

    MISSING = "missing"
    EXTRA = "extra"
    TRUNCATED = "truncated"
    ALTERED = "altered"
    UNREADABLE = "unreadable"
    UNFINISHED = "unfinished"
    """Not damaged: the stage has not ended."""
    MISDATED = "misdated"
    """The moment that is noted is all that is wrong."""
    WRONG = "wrong"
    """The file is as its receipt says, and wrong all the same: done again, it may well have other bytes."""


class Problem(NamedTuple):
    """What is wrong with one file."""

    kind: FindingKind
    seen: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.seen}" if self.seen else str(self.kind)


@dataclass(frozen=True, slots=True)
class Finding:
    """One file that is not as its receipt says."""

    folder: str
    name: str
    problem: Problem
    unit: str | None
    """Whose work would restore it; None where no unit made it."""

    @property
    def kind(self) -> FindingKind:
        """How the file is not as it should be."""
        return self.problem.kind

    def __str__(self) -> str:
        return f"{join(self.folder, self.name)}: {self.problem}"


@dataclass(frozen=True, slots=True)
class VerifiedFolder:
    """What a check of one stage's folder came to."""

    folder: str
    files: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong but, at most, that the stage has not ended: running it is its own command's work."""
        return all(finding.kind == FindingKind.UNFINISHED for finding in self.findings)

"""Results of `verify`: one finding per file that differs from its receipt."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from dualtoken.infra.storage import join


class FindingKind(StrEnum):
    """Kind of difference between a file and its record."""

    MISSING = "missing"
    EXTRA = "extra"
    TRUNCATED = "truncated"
    ALTERED = "altered"
    UNREADABLE = "unreadable"
    UNFINISHED = "unfinished"
    """The stage has not ended; nothing is damaged."""
    MISDATED = "misdated"
    """Only the recorded time is wrong."""
    WRONG = "wrong"
    """The file agrees with its receipt, and its content is wrong all the same: done again, it may have
    other bytes."""


class Problem(NamedTuple):
    """Difference of one file from its record."""

    kind: FindingKind
    details: str = ""

    def __str__(self) -> str:
        if not self.details:
            return str(self.kind)
        return f"{self.kind}: {self.details}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One file that is not as its receipt says."""

    folder: str
    name: str
    problem: Problem
    unit: str | None
    """The unit that would restore it when done again; None where no unit made it."""

    @property
    def kind(self) -> FindingKind:
        """How the file is not as it should be."""
        return self.problem.kind

    def __str__(self) -> str:
        return f"{join(self.folder, self.name)}: {self.problem}"


@dataclass(frozen=True, slots=True)
class VerifiedFolder:
    """Result of checking one stage's folder."""

    folder: str
    files: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong, or only that the stage has not ended."""
        return all(finding.kind == FindingKind.UNFINISHED for finding in self.findings)

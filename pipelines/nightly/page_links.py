"""Addresses that the nightly's pages link to.

What lies in the history is named relative to the page, so that both can be moved together.
"""

import os
from pathlib import Path
from urllib.parse import quote

from dualtoken.infra.redaction import redacted
from dualtoken.infra.storage import Store, join
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.core.receipts import STAGE_FILE
from dualtoken.pipelines.evaluation.summary import CARD, summary_folder
from dualtoken.pipelines.nightly.records import MeasuredSubject

NIGHT_PAGES = "nights"
"""Folder of the nights' pages, below the index's."""
_SCHEMES = frozenset({"http", "https", "file", "s3", "gs", "gcs", "abfs", "abfss", "az", "hf"})
"""Schemes of addresses that a page links to; an address of any other one is shown as text."""


def night_page(night: str) -> str:
    """Name a night's page, below the index's folder."""
    return f"{NIGHT_PAGES}/{night}.html"


class Links:
    """Addresses as seen from the pages of one folder."""

    def __init__(self, history: Store, folder: Path) -> None:
        self._root: Path | None = None
        self._prefix = redacted(join(history.url, ""))
        self._folder = folder.resolve()
        self._places: dict[str, str | None] = {}
        if history.is_local:
            self._root = Path(history.path()).resolve()
            self._prefix = f"{quote(os.path.relpath(self._root, self._folder))}/"

    def file(self, name: str) -> str:
        """Return the address of a file or folder of the history."""
        return f"{self._prefix}{quote(name)}"

    def card(self, subject: MeasuredSubject) -> str:
        """Return the address of an evaluation's card."""
        return self.file(f"{subject.folder}/{summary_folder(subject.evaluation)}/{CARD}")

    def scores(self, subject: MeasuredSubject, pair: str) -> str:
        """Return the address of the folder of a set's scores by a protocol; `pair` is `<set>/<protocol>`."""
        return self.file(f"{subject.folder}/scores/{pair}/")

    def model(self, subject: MeasuredSubject) -> str | None:
        """Return the address of a subject's model; None where it has none that can be opened."""
        return self._place(subject.place) if subject.place is not None else None

    def recipe(self, subject: MeasuredSubject) -> str | None:
        """Return the address of the record of a model's training, which holds its recipe."""
        place = self.model(subject)
        return join(place, STAGE_FILE) if place is not None and subject.kind == "recipe" else None

    def _place(self, place: str) -> str | None:
        if place not in self._places:
            self._places[place] = self._address(place)
        return self._places[place]

    def _address(self, place: str) -> str | None:
        if is_url(place):
            scheme = place.partition(":")[0].lower()
            return redacted(place) if scheme in _SCHEMES else None
        path = Path(place).resolve()
        if self._root is not None and path.is_relative_to(self._root):
            return self.file(path.relative_to(self._root).as_posix())
        return path.as_uri()

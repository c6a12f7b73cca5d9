"""What a user is told of a folder of images once it is downloaded: what was left out, whence the captions."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from dualtoken.pipelines.core.commit import StageContent
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.core.stage import StageExtras

_SKIPPED = {
    "hidden": "hidden name",
    "linked_folders": "folder link",
    "other_files": "non-image file",
}
"""What was left out, by its name in the details."""


def finish_folder(content: StageContent) -> StageExtras:
    """Return where captions are from and what was left out, as details of the manifest.

    Other sources than folders have none.
    """
    captions_from: Counter[str] = Counter()
    details: dict[str, Any] = {}
    for receipt in content.unread_receipts():
        content.add(receipt)
        if "captions_from" in receipt.facts:
            captions_from.update(receipt.facts["captions_from"])
            details = {name: receipt.facts[name] for name in ("skipped", "tables")}
    if details:
        details["captions_from"] = dict(sorted(captions_from.items()))
    return StageExtras(details, ())


def folder_notes(details: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines on the details that `finish_folder` gave; none where it gave none."""
    captions_from = details.get("captions_from", {})
    without_row = captions_from.get("text_file", 0) + captions_from.get("file_name", 0)
    if details.get("tables") and without_row:
        yield (
            f"{pluralized(without_row, 'image')} without a row in the table of captions: "
            f"{captions_from.get('text_file', 0):,} with captions in text files, "
            f"{captions_from.get('file_name', 0):,} in their names"
        )
    skipped = details.get("skipped", {})
    counts = [pluralized(skipped[name], noun) for name, noun in _SKIPPED.items() if skipped.get(name)]
    if counts:
        yield f"left out: {', '.join(counts)}"

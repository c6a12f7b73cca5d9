"""A real corpus behind a real server: 1,957 emoji, and thirteen URLs that must be refused.

`python -m tests.helpers.emoji TABLE.csv` writes the URL table and serves it until it is stopped.
"""

import csv
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualtoken.infra.image_server import serve_images

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "emoji"
MISSING = f"no emoji: {FOLDER} is missing"
BAD = {"failed:http_404": 10, "failed:not_an_image": 2, "failed:truncated_image": 1}
"""Numbers of the thirteen bad URLs by their status in the ledger."""
BAD_NAMES = [*(f"gone-{number}.png" for number in range(10)), "page-0.html", "page-1.html", "cut.png"]


def _lookup(path: str) -> bytes | None:
    """Return the body of a reply, or None for a 404."""
    if path.endswith(".html"):
        return b"<!doctype html><title>Not here</title><p>This page is no image."
    if path == "cut.png":
        return _image("1f600.png")[:1500]
    if (FOLDER / "images" / path).is_file():
        return _image(path)
    return None


def _image(name: str) -> bytes:
    return (FOLDER / "images" / name).read_bytes()


def write_table(file: Path, base_url: str, limit: int | None = None) -> int:
    """Write the URL table, with the bad rows spread over it, and return its number of rows.

    With a limit, only so many of the images are in it.
    """
    rows = _rows_of_images()[:limit]
    for number, name in enumerate(BAD_NAMES):
        position = number * len(rows) // len(BAD_NAMES)
        rows.insert(position, (name, f"a picture that is not there, number {number}"))
    with file.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("url", "caption"))
        for name, caption in rows:
            writer.writerow((f"{base_url}/{name}", caption))
    return len(rows)


def _rows_of_images() -> list[tuple[str, str]]:
    """Return each image's name and caption: what the corpus says of it, each keyword once."""
    rows: list[tuple[str, str]] = []
    with (FOLDER / "captions.csv").open(newline="") as captions:
        for row in csv.DictReader(captions):
            words = dict.fromkeys([row["caption"], *row["keywords"].split("|")])
            rows.append((row["file"], ", ".join(words)))
    return rows


@contextmanager
def served_emoji(table: Path, limit: int | None = None) -> Iterator[int]:
    """Serve the corpus while the block runs, with its table in a file; yield the number of rows."""
    with serve_images(_lookup) as base_url:
        yield write_table(table, base_url, limit)


if __name__ == "__main__":
    with served_emoji(Path(sys.argv[1])) as rows:
        print(f"{rows} rows in {sys.argv[1]}; serving until stopped", flush=True)
        time.sleep(86_400)

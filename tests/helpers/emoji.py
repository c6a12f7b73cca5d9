"""A real corpus behind a real server: 1,957 emoji, and thirteen URLs that a downloader must refuse by the right name.

`python -m tests.emoji TABLE.csv` writes the URL table and serves it until it is stopped.
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
"""What the ledger must say of the thirteen."""


def _lookup(path: str) -> bytes | None:
    if path.endswith(".html"):
        return b"<!doctype html><title>Not here</title><p>This page is no image."
    if path == "cut.png":
        return _image("1f600.png")[:1500]
    return _image(path) if (FOLDER / "images" / path).is_file() else None


def _image(name: str) -> bytes:
    return (FOLDER / "images" / name).read_bytes()


def write_table(file: Path, base_url: str, limit: int | None = None) -> int:
    """Write the URL table, the bad rows spread over it, and return its rows; `limit` leaves out all but the first images."""
    with (FOLDER / "captions.csv").open(newline="") as captions:
        good = [
            (row["file"], ", ".join(dict.fromkeys([row["caption"], *row["keywords"].split("|")])))
            for row in csv.DictReader(captions)
        ]
    names = [*(f"gone-{number}.png" for number in range(10)), "page-0.html", "page-1.html", "cut.png"]
    rows = good[:limit]
    for number, name in enumerate(names):
        rows.insert(number * len(rows) // len(names), (name, f"a picture that is not there, number {number}"))
    with file.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("url", "caption"))
        writer.writerows((f"{base_url}/{name}", caption) for name, caption in rows)
    return len(rows)


@contextmanager
def served_emoji(table: Path, limit: int | None = None) -> Iterator[int]:
    """Serve the corpus while the block runs, with its table in a file; yield the number of rows."""
    with serve_images(_lookup) as base_url:
        yield write_table(table, base_url, limit)


if __name__ == "__main__":
    with served_emoji(Path(sys.argv[1])) as rows:
        print(f"{rows} rows in {sys.argv[1]}; serving until stopped", flush=True)
        time.sleep(86_400)

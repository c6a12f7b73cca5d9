"""Prints one hash for each finished stage of a run, computed from the files themselves, or compares two runs.

    python -m tests.manifest_hashes ROOT [OTHER]

A change of the code that is meant to change no output is checked with one run before it and one after it. A
small run that takes minutes is

    dualtoken run recipes/scenes.yaml --root ROOT --set corpora.scenes-train.source.num_images=240 \\
        --set corpora.scenes-heldout.source.num_images=60 --set teacher.steps=20 --set train.steps=12 \\
        --set download.rows_per_shard=64

Each line is `STAGE CORPUS HASH`. The hash covers the names and contents of all files that the receipts and
the manifest of a stage name, as a manifest's root hash does. With OTHER, each line ends with "same" or
"differs", and the exit code is 1 if any differs or is missing from one of the runs.

The report is left out: it holds times and folders. Cards (README.md) are hashed without the import lines of
their code examples, whose module names changed once; a manifest's own root hash covers them as they are.
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dualtoken.infra.storage import Store
from dualtoken.pipelines.core.receipts import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    content_line,
    hash_lines,
    iter_receipts,
)
from dualtoken.pipelines.tokens.card import CARD_FILE

LEFT_OUT = ("report",)
"""Stages whose files differ from run to run."""
IMPORT_LINE = re.compile(rb"^from \S+ import .*\n", re.MULTILINE)
IMPORT_COMMENT = re.compile(rb"  # or \S+\(path\)$", re.MULTILINE)


class Stage(NamedTuple):
    """The name of a stage's output, the same in two runs."""

    stage: str
    corpus: str

    def __str__(self) -> str:
        """Return the first two words of a line."""
        return f"{self.stage} {self.corpus}"


def main(arguments: list[str]) -> int:
    """Print the lines and return the exit code."""
    if len(arguments) not in (1, 2):
        print(__doc__)
        return 2
    hashes = stage_hashes(Path(arguments[0]))
    if len(arguments) == 1:
        for stage in sorted(hashes):
            print(f"{stage} {hashes[stage]}")
        return 0
    other_hashes = stage_hashes(Path(arguments[1]))
    num_different = 0
    for stage in sorted(hashes.keys() | other_hashes.keys()):
        own_hash = hashes.get(stage, "missing")
        other_hash = other_hashes.get(stage, "missing")
        if own_hash == other_hash:
            print(f"{stage} {own_hash} same")
        else:
            num_different += 1
            print(f"{stage} {own_hash} {other_hash} differs")
    return 1 if num_different else 0


def stage_hashes(root: Path) -> dict[Stage, str]:
    """Return the hash of each finished stage below a folder, but the report's."""
    hashes: dict[Stage, str] = {}
    for manifest_file in sorted(root.rglob(MANIFEST_FILE)):
        manifest = Manifest.from_bytes(manifest_file.read_bytes())
        if manifest.stage in LEFT_OUT:
            continue
        stage = Stage(manifest.stage, manifest.corpus or "-")
        if stage in hashes:
            raise SystemExit(f"{root} has two finished folders of {stage}: name a root of a single run")
        folder = manifest_file.parent
        hashes[stage] = hash_lines(_content_line(folder, file) for file in _named_files(folder, manifest))
    if not hashes:
        raise SystemExit(f"{root} has no finished stage below it: name a run's root")
    return hashes


def _named_files(folder: Path, manifest: Manifest) -> Iterator[FileRecord]:
    for receipt in iter_receipts(Store(str(folder))):
        yield from receipt.files
    yield from manifest.files


def _content_line(folder: Path, file: FileRecord) -> bytes:
    """Return a file's line of the hash, from the file as it is on disk."""
    content = (folder / file.name).read_bytes()
    if file.name == CARD_FILE:
        content = _without_imports(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return content_line(file.model_copy(update={"sha256": sha256}))


def _without_imports(card: bytes) -> bytes:
    return IMPORT_COMMENT.sub(b"", IMPORT_LINE.sub(b"", card))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

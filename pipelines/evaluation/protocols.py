"""What identifies a protocol: the hash of all that decides a number beside model and set."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from dualtoken.pipelines.config.evaluation import EvaluationProtocol
from dualtoken.pipelines.evaluation.closeness import weight_digests
from dualtoken.pipelines.evaluation.metric_catalogue import VERSION, needs_teacher


def protocol_content(protocol: EvaluationProtocol, teacher_digest: str | None) -> dict[str, Any]:
    """Return a protocol as it is hashed, and printed beside its numbers; reads the weights that it names.

    `teacher_digest` is of the teacher's files, where one is known; it counts where a metric needs it.
    """
    content = protocol.identity() | {"metric_version": VERSION}
    # Each is computed by itself, so a further one leaves the others comparable.
    del content["metrics"]
    weights = weight_digests(protocol)
    if weights:
        content["weights"] = weights
    if needs_teacher(protocol):
        content["teacher"] = teacher_digest
    return content


def protocol_hash(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a protocol's content as canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(canonical.encode()).hexdigest()

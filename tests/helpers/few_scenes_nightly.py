"""A nightly that is real in all but its size: the canary, eight scenes, one metric, in this process."""

from datetime import date
from pathlib import Path
from typing import Any

import yaml

from dualtoken.pipelines.evaluation.canary import write_canary


def write_nightly(folder: Path, start: date, **schedule: Any) -> Path:
    """Write the spec with its model and evaluation; `start` and `schedule` say when its nights are."""
    tokenizer, _ = write_canary(folder / "canary")
    evaluation = {
        "name": "few",
        "root": "evaluations",
        "in_process": True,
        "sets": {"few": {"kind": "scenes", "num_images": 8}},
        "protocols": {"plain": {"metrics": ["psnr"]}},
    }
    (folder / "evaluation.yaml").write_text(yaml.safe_dump(evaluation))
    times = {"cron": "* * * * *", "timezone": "UTC", "deadline_hours": 24, "start": start.isoformat()}
    spec = {
        "name": "few",
        "root": str(folder / "root"),
        "schedule": times | schedule,
        "subjects": {"model": {"kind": "folder", "folder": str(tokenizer)}},
        "evaluation": str(folder / "evaluation.yaml"),
        "sets": ["few"],
        "protocols": ["plain"],
        "primary": ["few/plain/psnr"],
    }
    place = folder / "nightly.yaml"
    place.write_text(yaml.safe_dump(spec))
    return place

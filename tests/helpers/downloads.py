"""The download stage without a session: all units of a job, one after the other."""

from pathlib import Path

from dualtoken.pipelines.core.ledger import check_closed
from dualtoken.pipelines.core.stage import StageJob, UnitOutput
from dualtoken.pipelines.images import download


def run_all(job: StageJob, scratch: Path) -> list[UnitOutput]:
    """Run a job's units into a new folder, and check that each accounts for every row."""
    scratch.mkdir()
    worker = download.Worker(job)
    outputs = [worker.run(unit, scratch) for unit in job.units]
    for unit, output in zip(job.units, outputs, strict=True):
        assert output.ledger is not None
        check_closed(output.ledger, unit.rows)
    return outputs

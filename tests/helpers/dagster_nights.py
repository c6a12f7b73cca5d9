"""The small nightly as Dagster serves it."""

import dagster as dg

from dualtoken.pipelines.core.messages import PrintLine
from dualtoken.pipelines.nightly.session import Session
from dualtoken.pipelines.workflow.nightly import nightly_definitions
from tests.helpers.nights import SmallNightly

ASSET = dg.AssetKey("nightly_small")
JOB = "nightly_small_job"


def served(small: SmallNightly) -> dg.Definitions:
    """Return the definitions; what nights say goes to `small.lines`, too."""

    def open_session(spec: object, print_line: PrintLine) -> Session:
        assert spec is small.spec

        def say(line: str) -> None:
            small.lines.append(line)
            print_line(line)

        return Session(small.spec, small.nightly._replace(print_line=say))

    return nightly_definitions(small.spec, open_session)


def run_partition(
    small: SmallNightly, night: str, instance: dg.DagsterInstance, *, fails: bool = False
) -> dg.ExecuteInProcessResult:
    """Run the job on a partition, as Dagster does for a tick or a click."""
    job = served(small).resolve_job_def(JOB)
    result = job.execute_in_process(partition_key=night, instance=instance, raise_on_error=False)
    assert result.success == (not fails)
    return result

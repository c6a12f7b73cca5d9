"""The program behind the `dualtoken` script: ready for signals before the command line is imported."""

from dualtoken.jobs.stopping import stop_on_signals


def main() -> None:
    """Run the command line."""
    stop_on_signals()
    from dualtoken.jobs.cli import main as run  # noqa: PLC0415  (takes a second)

    run()

"""Which Ray job this process is, if any; without importing Ray, so that a mistake is told at once."""

import os

_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's job supervisor sets it for the entry point only; RAY_ADDRESS alone may come from a user's shell."""


def current_job_address() -> str | None:
    """The address of the cluster whose job this process is, host:port; None outside a Ray job."""
    return os.environ.get("RAY_ADDRESS") if _JOB_CONFIG_VARIABLE in os.environ else None

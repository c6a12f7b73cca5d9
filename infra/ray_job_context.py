"""The Ray job that this process is, if any. Imports no Ray, so that a mistake in a recipe is told at once."""

import os

_JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable set by Ray's job supervisor for the entry point only; RAY_ADDRESS may come from a user's shell."""


def current_job_address() -> str | None:
    """Return the address, host:port, of the cluster that this Ray job runs on; None outside of one."""
    if _JOB_CONFIG_VARIABLE not in os.environ:
        return None
    return os.environ.get("RAY_ADDRESS")

"""The data system: from URL tables to trained tokenizers and token shards, one room for each concern.

Imports `infra` and `model`; each room imports only the rooms before it (`ROOMS` in tests/test_imports.py).
This file itself holds only the errors that commands end with, and touches neither network, disk nor
accelerator.
"""

from dualtoken.pipelines.errors import ExitCode, UserError, exit_code

__all__ = ["ExitCode", "UserError", "exit_code"]

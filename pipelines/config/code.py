"""The recipe's `code` key: what becomes of outputs that other code made under the same fingerprint."""

from typing import Literal

from dualtoken.model.config.base import Config


class CodeConfig(Config):
    """Treatment of outputs that were made, or begun, by other code than this."""

    changed: Literal["warn", "refuse", "ignore"] = "warn"
    """`warn` names them and goes on, `refuse` ends the run with exit code 2, `ignore` says nothing."""

"""Errors that speak to a person, and the exit codes of the ``lab`` command.

Every fault that a user can cause or cure is a `LabError`: what happened, where, and what to do.
Anything else that escapes is a bug in Underpass and is shown with a trace only under ``--debug``.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NoReturn


class ExitCode(IntEnum):
    """Exit status of ``lab``. Stable: scripts may rely on it. Documented in docs/exit-codes.md."""

    OK = 0
    BUG = 1
    USAGE = 2
    LAB_FILE = 3
    HOST = 4
    ARTIFACT = 5
    NODE = 6
    PROVISION = 7
    BUSY = 8
    NOT_THERE = 9
    NOT_VERIFIED = 10
    DENIED = 11
    INTERRUPTED = 130


class LabError(Exception):
    """A fault a person can act on.

    `message` says what happened and where, `hint` what to do next, `details` lists further lines
    (one fault each, or the tail of a log). `code` is the exit status.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: Sequence[str] = (),
        code: ExitCode = ExitCode.BUG,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = list(details)
        self.code = code
        if details:  # for those who see a trace: a test's report, `--debug`
            self.add_note("\n".join(details))


def die(
    message: str,
    *,
    hint: str | None = None,
    details: Sequence[str] = (),
    code: ExitCode = ExitCode.USAGE,
) -> NoReturn:
    """Raise a `LabError`. A function, so that a fault reads as one line where it is found."""
    raise LabError(message, hint=hint, details=details, code=code)

"""Faults that a person can act on, and the loader's exit codes."""

import enum


class Exit(enum.IntEnum):
    """What the loader's exit status means."""

    OK = 0
    UNEXPECTED = 1
    CONFIGURATION = 2
    ENVIRONMENT = 3
    LAYOUT = 4
    COMPILE = 5
    ATTACH = 6


class LoaderError(Exception):
    """A fault with what to do about it."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.ENVIRONMENT) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code

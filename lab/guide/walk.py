"""Runs a document's console blocks and says what was not as written: sybil's evaluator of ours."""

from __future__ import annotations

import time

from sybil import Example

from lab.guide.document import Block, Command
from lab.guide.outcome import fits
from lab.guide.shell import Finished, Shell

PAUSE = 0.5  # seconds between two tries of a block that may be retried


class Walk:
    """An evaluator for console blocks: each command is run, and what it printed compared."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def __call__(self, example: Example) -> str | None:
        """What is wrong with the block once it is as written, or its time is up."""
        block: Block = example.parsed
        deadline = time.monotonic() + block.retry * self._shell.slowness
        while True:
            wrong = self._once(block)
            if wrong is None or time.monotonic() > deadline:
                return wrong
            time.sleep(PAUSE)

    def _once(self, block: Block) -> str | None:
        for command in block.commands:
            wrong = _wrong(block, command, self._shell.run(command.text))
            if wrong:
                return f"line {command.line}: $ {command.text}\n{wrong}"
        return None


def _wrong(block: Block, command: Command, seen: Finished) -> str | None:
    if not fits(command.expected, seen.output):
        return f"it should print:\n{command.expected}\nit printed (status {seen.status}):\n{seen.output}"
    if (seen.status != 0) != block.fails:
        return f"it ended with status {seen.status}, having printed:\n{seen.output}"
    return None

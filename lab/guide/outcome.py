"""Compares what a command printed with what a document says that it prints.

`...` alone on a line stands for any lines, or none; within a line for any text of it. How many blanks
part two words is not compared: the width of a column depends on names.
"""

from __future__ import annotations

import re

ANY = "..."


def fits(expected: str, printed: str) -> bool:
    """Whether `printed` is what `expected` says."""
    return re.fullmatch(_pattern(expected), _tidy(printed)) is not None


def _tidy(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _pattern(expected: str) -> str:
    return "".join(
        r"(?:.*\n)*?" if line == ANY else ".*?".join(map(re.escape, line.split(ANY))) + r"\n"
        for line in _tidy(expected).splitlines()
    )

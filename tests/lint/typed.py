"""The commands that a document tells its reader to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lab.guide.document import sections

#: Programs whose name in running text, with something behind it, is a command to type.
PROGRAMS = ("lab", "make", "vagrant", "docker", "source")
#: A word that stands for the reader's own: such a command is a form, and cannot be run as it stands.
_PLACEHOLDER = re.compile(r"(?:^|[ =/])[A-Z]{2,}\b(?!=)")

_FENCE = re.compile(r"^([ \t]*)(`{3,})([^\n`]*)\n(.*?)^\1\2[ \t]*$", re.M | re.S)
_INDENTED = re.compile(r"(?:\A|\n\n)((?: {4}[^\n]*(?:\n|\Z)|\n(?= {4}))+)")
_INLINE = re.compile(r"`([^`\n]+)`")


def plain(command: str) -> str:
    """The command as it would be with `.venv/bin` in the path, on one line."""
    joined = " ".join(command.replace("\\\n", " ").split())
    return re.sub(r"(^|[ (])\.venv/bin/(?=lab\b)", r"\1", joined)


def run_by_the_suite(document: Path) -> set[str]:
    """Those of `console` blocks, which the suite runs."""
    return {plain(command) for part in sections(document) for command in part.commands}


def blocks(document: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block."""
    for match in _FENCE.finditer(document):
        yield match[3].strip(), match[4]


def shown(document: str) -> Iterator[str]:
    """Those of indented blocks; what stands behind `#` is a remark."""
    for block in _INDENTED.finditer(_FENCE.sub("", document)):
        for line in re.sub(r"\\\n", " ", block[1]).splitlines():
            if command := plain(re.sub(r"(^|\s{2,})#.*", "", line)):
                yield command


def mentioned(document: str) -> Iterator[str]:
    """What is written in running text as a whole command, with what is behind its name."""
    prose = _INDENTED.sub("\n", _FENCE.sub("", document))
    for match in _INLINE.finditer(prose):
        command = plain(match[1])
        if command.split(" ")[0] in PROGRAMS:
            yield command


def is_form(command: str) -> bool:
    """Whether words of it stand for the reader's own (`lab -f FILE`)."""
    return _PLACEHOLDER.search(command) is not None or command.endswith(" ...")

"""Reads Markdown with `console` blocks: sybil finds the parts, here they become steps and commands.

A step is a section whose heading is numbered (`## 2. Start two pods`). A console block holds commands
behind `$ ` (continued behind `> `), each followed by what it prints. A comment before a block is a mark:
`<!-- retry for 30 s -->` (until it prints this) or `<!-- fails -->` (its status is not 0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

from lab.errors import ExitCode, die

PROMPT, MORE = "$ ", "> "
_HEADING = re.compile(r"^## (?:(\d+)\. )?(.+)$", re.MULTILINE)
_RETRY = re.compile(r"for (\d+) s$")

Evaluator = Callable[[Example], "str | None"]


@dataclass(frozen=True)
class Command:
    """One command as typed; what it prints; its line in the file, from 1."""

    text: str
    expected: str
    line: int


@dataclass(frozen=True)
class Block:
    """A console block. `retry` is for how many seconds it may be tried again, 0 for never."""

    commands: tuple[Command, ...]
    retry: int = 0
    fails: bool = False


@dataclass
class Section:
    """A part of a document under one `##` heading; `number` is that of a step, 0 for none."""

    number: int
    title: str
    text: str
    examples: list[Example] = field(default_factory=list)

    @property
    def blocks(self) -> list[Block]:
        return [example.parsed for example in self.examples]

    @property
    def commands(self) -> list[str]:
        """What a learner types in this section."""
        return [command.text for block in self.blocks for command in block.commands]


def sections(path: Path, evaluator: Evaluator | None = None) -> list[Section]:
    """The parts of the document at `path`; the first one is what stands before any `##` heading.

    `evaluator` gets each console block when its example is evaluated, and returns what was wrong.
    """

    def unused(example: Example) -> str | None:
        raise AssertionError("this document was read, not to be run")

    document = Document.parse(
        str(path), _headings, _marks, CodeBlockParser(language="console", evaluator=evaluator or unused)
    )
    found = [Section(0, "", "")]
    start, marks = 0, list[Region]()
    for example in document:
        if "title" in example.region.lexemes:
            found[-1].text = document.text[start : example.start]
            start = example.start
            lexemes = example.region.lexemes
            found.append(Section(int(lexemes["number"] or 0), lexemes["title"] or "", ""))
        elif "directive" in example.region.lexemes:
            marks.append(example.region)
            continue
        else:
            example.parsed = _block(path, example, marks)
            found[-1].examples.append(example)
        if marks and "title" in example.region.lexemes:
            die(f"{path}: a mark is followed by no console block", code=ExitCode.BUG)
        marks = []
    found[-1].text = document.text[start:]
    return found


def _headings(document: Document) -> Iterable[Region]:
    for match in _HEADING.finditer(document.text):
        yield Region(match.start(), match.end(), lexemes=match.groupdict() | _named(match))


def _named(match: re.Match[str]) -> dict[str, str | None]:
    return {"number": match[1], "title": match[2]}


_marks = DirectiveInHTMLCommentLexer(directive="retry|fails", arguments=r"[^-\n]*?")


def _block(path: Path, example: Example, marks: list[Region]) -> Block:
    retry, fails = 0, False
    for mark in marks:
        said = (mark.lexemes["arguments"] or "").strip()
        match = _RETRY.match(said)
        if mark.lexemes["directive"] == "fails" and not said:
            fails = True
        elif mark.lexemes["directive"] == "retry" and match:
            retry = int(match[1])
        else:
            die(f"{path}:{example.line}: a mark is `retry for SECONDS s` or `fails`", code=ExitCode.BUG)
    return Block(tuple(_commands(path, str(example.parsed), example.line + 1)), retry, fails)


def _commands(path: Path, source: str, first: int) -> Iterable[Command]:
    """The commands of a block whose first line is line `first` of the file."""
    typed: list[str] = []
    printed: list[str] = []
    began = first
    for number, line in enumerate(source.splitlines(), first):
        if line.startswith(PROMPT):
            if typed:
                yield Command("\n".join(typed), "\n".join(printed), began)
            typed, printed, began = [line.removeprefix(PROMPT)], [], number
        elif not typed:
            die(f"{path}:{number}: a console block begins with a command behind `$ `", code=ExitCode.BUG)
        elif line.startswith(MORE) and not printed:
            typed.append(line.removeprefix(MORE))
        else:
            printed.append(line)
    if typed:
        yield Command("\n".join(typed), "\n".join(printed), began)

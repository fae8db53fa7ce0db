"""The BPF source passes plain clang: no BCC, no warnings."""

from __future__ import annotations

from pathlib import Path

import pytest
from clang.cindex import Index

from datapath.programs import INCLUDE, PROGRAMS, Program

FLAGS = ["-target", "bpf", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{INCLUDE}"]
# Where Debian keeps <asm/types.h>, which the UAPI headers include.
MULTIARCH = sorted(Path("/usr/include").glob("*-linux-gnu"))


def faults(text: str, name: str) -> list[str]:
    """What clang says of a source text."""
    flags = [*FLAGS, *(f"-I{path}" for path in MULTIARCH)]
    unit = Index.create().parse(name, args=flags, unsaved_files=[(name, text)])
    return [str(diagnostic) for diagnostic in unit.diagnostics]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_no_warnings(program: Program) -> None:
    assert faults(program.source.read_text(), str(program.source)) == []


def test_warnings_would_be_seen() -> None:
    program = PROGRAMS[0]
    text = program.source.read_text() + "\nint wrong(void)\n{\n\tint unused;\n\treturn 0;\n}\n"
    assert len(faults(text, str(program.source))) == 1

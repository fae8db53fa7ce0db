"""What crashed kernels or lost data elsewhere does not stand in the source at all (hazard 27)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from datapath import tracing
from datapath.libbpf import AttachType, ProgramType
from datapath.loader import compiler
from datapath.loader.errors import LoaderError
from datapath.programs import INCLUDE, PROGRAMS, Program, Target

HELPERS = (INCLUDE / "helpers.h").read_text()


def code_of(program: Program) -> str:
    """A program with the headers that it includes, comments left out."""
    seen: set[str] = set()

    def whole(path: Path) -> str:
        if path.name in seen:
            return ""
        seen.add(path.name)
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        included = [INCLUDE / name for name in re.findall(r'#include "(.+?)"', text)]
        return "".join(map(whole, included)) + text

    return whole(program.source)


def programs(*types: ProgramType) -> list[Program]:
    found = [program for program in PROGRAMS if program.type in types]
    assert found
    return found


def test_hazard_27_no_message_is_dropped_or_given_another_length() -> None:
    for name in ("apply_bytes", "cork_bytes", "msg_pop_data", "msg_push_data"):
        assert name not in HELPERS
    for program in programs(ProgramType.SK_MSG, ProgramType.SK_SKB):
        assert "SK_DROP" not in code_of(program), program.name


def test_hazard_27_no_element_of_the_sockets_is_replaced() -> None:
    added = re.findall(
        r"sockets_add\(ctx, MAP\(sockets\), &key, (\w+)\)", (INCLUDE / "pairing.h").read_text()
    )
    assert added == ["BPF_NOEXIST"]
    for program in PROGRAMS:
        assert not re.search(r"map_update\(MAP\(sockets\)", code_of(program)), program.name


def test_hazard_27_no_tracing_program_takes_a_socket_out() -> None:
    """But for the iterator, which runs where locks may be taken; the kernel allows it there alone."""
    (iterator,) = (program for program in PROGRAMS if program.target is Target.LEAVING)
    assert (iterator.attach, iterator.hook) == (AttachType.TRACE_ITER, "tcp")
    for program in programs(ProgramType.TRACING, ProgramType.SK_MSG):
        if program is iterator:
            continue
        assert not re.search(r"map_delete\(MAP\(sockets\)", code_of(program)), program.name


def test_hazard_27_redirect_is_of_tcp_alone() -> None:
    assert {program.name for program in programs(ProgramType.SOCK_OPS)} == {"sock_pair"}  # TCP's own hook


def test_hazard_28_the_kernel_floor_is_that_of_what_is_used() -> None:
    for program in PROGRAMS:
        assert re.search(r"^ \* Kernel    6\.6", program.source.read_text(), re.MULTILINE), program.name


def test_a_kernel_without_types_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_struct: str, _field: str, _kernel: object) -> int:
        raise OSError(2, "the kernel's BTF: No such file or directory")

    monkeypatch.setattr(tracing, "offset_of", none)
    monkeypatch.setattr(compiler, "prepare_headers", lambda: None)
    monkeypatch.setitem(sys.modules, "bcc", ModuleType("bcc"))
    with pytest.raises(LoaderError, match="cannot read the kernel's types") as caught:
        compiler.compile_all({})
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.hint

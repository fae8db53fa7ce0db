"""Binary formats that the doctor reads and writes: instructions and type information."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.doctor.bpf import assembler, btf
from lab.doctor.bpf.assembler import R0, R1, R2, R10
from lab.doctor.bpf.btf import FUNC, STRUCT, TYPEDEF, NotBtfError, find
from lab.doctor.bpf.programs import HELPERS, KINDS, MAPS, calling, smallest


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (assembler.move(R2, R10), "bfa2000000000000"),
        (assembler.put(R0, 1), "b700000001000000"),
        (assembler.put(R1, -111), "b701000091ffffff"),
        (assembler.add(R2, -8), "07020000f8ffffff"),
        (assembler.load_pointer(R2, R1, 64), "7912400000000000"),
        (assembler.map_pointer(R2, 7), "18120000070000000000000000000000"),
        (assembler.call(71), "8500000047000000"),
        (assembler.skip_if_zero(R2, 5), "1502050000000000"),
        (assembler.leave(), "9500000000000000"),
    ],
)
def test_instructions_are_as_the_kernels_documentation_gives_them(code: bytes, expected: str) -> None:
    assert code.hex() == expected


def test_a_buffer_on_the_stack_is_zeroed_in_full() -> None:
    code = assembler.zero_on_stack(R2, 16)
    stores = [struct.unpack("<BBhi", code[at : at + 8]) for at in (0, 8)]
    assert [(opcode, register, offset) for opcode, register, offset, _ in stores] == [
        (0x7A, R10, -8),
        (0x7A, R10, -16),
    ]
    assert code.endswith(assembler.move(R2, R10) + assembler.add(R2, -16))


def test_every_program_is_whole_instructions_and_ends() -> None:
    handles = {shape.name: 3 for shape in MAPS}
    codes = [smallest(kind) for kind in KINDS] + [calling(helper, handles)[1] for helper in HELPERS]
    for code in codes:
        assert len(code) % 8 == 0
        assert code.endswith(assembler.leave())


def test_each_helper_names_maps_that_are_tried_too() -> None:
    known = {shape.name for shape in MAPS}
    assert all(set(helper.maps) <= known for helper in HELPERS)


def information(*types: tuple[int, str, int]) -> bytes:
    """Type information of `types`: (kind, name, number of members)."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for _, name, _ in types)
    body = b""
    for kind, name, members in types:
        fixed, each = btf._TAILS.get(kind, (0, 0))
        offset = strings.index(b"\0" + name.encode() + b"\0") + 1
        body += struct.pack("<III", offset, kind << 24 | members, 0) + b"\0" * (fixed + each * members)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    return header + body + strings


def test_types_are_found_by_kind_and_name_behind_types_of_every_length() -> None:
    before = [(1, "int", 0), (STRUCT, "sock", 3), (6, "enum", 2), (13, "proto", 4)]
    data = information(*before, (FUNC, "sock_fn", 0), (19, "e", 1), (TYPEDEF, "btf_trace_x", 0))
    wanted = {
        (STRUCT, "sock"),
        (FUNC, "sock_fn"),
        (TYPEDEF, "btf_trace_x"),
        (FUNC, "sock"),
        (FUNC, "nowhere"),
    }
    assert find(data, wanted) == {(STRUCT, "sock"): 2, (FUNC, "sock_fn"): 5, (TYPEDEF, "btf_trace_x"): 7}


@given(st.binary(max_size=200))
def test_what_is_no_type_information_is_refused_or_holds_nothing(data: bytes) -> None:
    with contextlib.suppress(NotBtfError):
        assert find(data, {(STRUCT, "sock")}) in ({}, {(STRUCT, "sock"): 1})


def test_type_information_that_is_cut_off_is_refused() -> None:
    data = information((STRUCT, "other", 3), (FUNC, "sock_fn", 0))
    strings_at = data.index(b"\0other")
    header = bytearray(data[:24])
    struct.pack_into("<I", header, 12, 1 << 20)  # types said to be longer than the data
    with pytest.raises(NotBtfError):
        find(bytes(header) + data[24:strings_at] + data[strings_at:], {(TYPEDEF, "sock_fn")})

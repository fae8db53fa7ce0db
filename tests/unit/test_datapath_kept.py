"""Compiled programs that are kept: bound to the maps of the process that loads them, and to nothing else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.loader import kept

MAPS = {"conntrack": 7, "policies": 12, "events": 3}
OTHERS = {"conntrack": 40, "policies": 41, "events": 42}

Instruction = tuple[int, int, int]
#: opcode, kind of a wide load, number; of a wide load of a map, the map.
plain = st.tuples(st.sampled_from([0x07, 0x85, 0x95, 0xB7]), st.just(0), st.integers(-(2**31), 2**31 - 1))
number = st.tuples(st.just(0x18), st.just(0), st.integers(-(2**31), 2**31 - 1))
of_map = st.tuples(st.just(0x18), st.just(1), st.sampled_from(sorted(MAPS.values())))


def code_of(instructions: list[Instruction]) -> bytes:
    """The instructions as the kernel takes them; a wide load has a second half."""
    code = b""
    for opcode, kind, value in instructions:
        code += struct.pack("=BBhi", opcode, kind << 4, 0, value)
        code += struct.pack("=BBhi", 0, 0, 0, value if opcode == 0x18 and not kind else 0) * (opcode == 0x18)
    return code


@given(st.lists(st.one_of(plain, number, of_map), max_size=30))
def test_code_comes_back_with_the_maps_of_whoever_loads_it(instructions: list[Instruction]) -> None:
    code = code_of(instructions)
    without, places = kept.unbound(code, MAPS)
    assert kept.bound(without, places, MAPS) == code
    moved = {fd: OTHERS[name] for name, fd in MAPS.items()}
    expected = [(op, kind, moved[value] if kind else value) for op, kind, value in instructions]
    assert kept.bound(without, places, OTHERS) == code_of(expected)
    assert all(struct.unpack_from("=i", without, place + 4) == (0,) for place, _ in places)


@pytest.mark.parametrize(("kind", "value"), [(1, 99), (2, 7), (4, 1)])
def test_a_load_of_something_unknown_is_not_kept(kind: int, value: int) -> None:
    with pytest.raises(kept.NotKept):
        kept.unbound(code_of([(0x18, kind, value)]), MAPS)


def test_only_what_was_made_of_the_same_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "var" / "programs.json"
    code = {"pod_egress": code_of([(0x18, 1, 7), (0x95, 0, 0)])}
    kept.write(file, "key", code, MAPS)
    assert kept.read(file, "key", MAPS) == code
    assert kept.read(file, "another", MAPS) is None
    assert kept.read(file, "key", {}) is None, "a map that is not there"
    assert kept.read(tmp_path / "nothing", "key", MAPS) is None
    document = json.loads(file.read_text())
    for damaged in ("", "{", "[]", json.dumps({**document, "programs": {"a": {"code": "?"}}})):
        file.write_text(damaged)
        assert kept.read(file, "key", MAPS) is None

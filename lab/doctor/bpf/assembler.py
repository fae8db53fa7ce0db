"""A few BPF instructions as bytes, enough for programs that call one helper each.

Source: the kernel's Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import struct

R0, R1, R2, R3, R4, R10 = 0, 1, 2, 3, 4, 10

_PSEUDO_MAP_FD = 1


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


def move(to: int, source: int) -> bytes:
    """Set register `to` to `source`."""
    return _instruction(0xBF, to, source)


def put(to: int, value: int) -> bytes:
    """Set register `to` to a constant."""
    return _instruction(0xB7, to, value=value)


def add(to: int, value: int) -> bytes:
    """Add a constant to register `to`."""
    return _instruction(0x07, to, value=value)


def load_pointer(to: int, source: int, offset: int) -> bytes:
    """Set register `to` to the 64 bits that `source` + `offset` points to."""
    return _instruction(0x79, to, source, offset)


def map_pointer(to: int, handle: int) -> bytes:
    """Set register `to` to the map behind a descriptor."""
    return _instruction(0x18, to, _PSEUDO_MAP_FD, value=handle) + _instruction(0)


def zero_on_stack(to: int, size: int) -> bytes:
    """Set register `to` to the address of `size` (a multiple of 8) zero bytes on the stack."""
    stores = b"".join(_instruction(0x7A, R10, offset=-8 * (slot + 1)) for slot in range(size // 8))
    return stores + move(to, R10) + add(to, -size)


def call(helper: int) -> bytes:
    """Call a helper: r0 becomes its answer to r1 .. r5."""
    return _instruction(0x85, value=helper)


def skip_if_zero(register: int, instructions: int) -> bytes:
    """Skip the next `instructions` if the register holds 0."""
    return _instruction(0x15, register, offset=instructions)


def leave() -> bytes:
    """End the program; its value is r0."""
    return _instruction(0x95)


def answer(value: int) -> bytes:
    """End the program with a value."""
    return put(R0, value) + leave()

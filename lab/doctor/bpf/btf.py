"""The kernel's own type information: is it there, and which id has a type of a given name.

Source of the format: the kernel's Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")

STRUCT, TYPEDEF, FUNC = 4, 8, 12

_MAGIC = 0xEB9F
#: Bytes behind a type's 12, by kind: (fixed, for each of its members).
_TAILS = {
    1: (4, 0),  # int
    3: (12, 0),  # array
    4: (0, 12),  # struct
    5: (0, 12),  # union
    6: (0, 8),  # enum
    13: (0, 8),  # function prototype
    14: (4, 0),  # variable
    15: (0, 12),  # section
    17: (4, 0),  # declaration tag
    19: (0, 12),  # enum of 64 bits
}


class NotBtfError(Exception):
    """The data is not type information."""


def find(data: bytes, wanted: set[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """The ids of the `wanted` types, each (kind, name); those that are not there are left out."""
    try:
        magic, _, _, header, types, type_bytes, strings, _ = struct.unpack_from("<HBBIIIII", data)
        if magic != _MAGIC:
            raise NotBtfError(f"it begins with {magic:#x}")
        names = _offsets(data, header + strings, wanted)
        return _walk(data, header + types, type_bytes, names)
    except (struct.error, KeyError) as fault:
        raise NotBtfError(f"it ends early or holds an unknown kind: {fault}") from None


def _offsets(data: bytes, begin: int, wanted: set[tuple[int, str]]) -> dict[tuple[int, int], tuple[int, str]]:
    """(kind, offset of the name among the strings) -> wanted type; names are stored once."""
    found = {}
    for kind, name in wanted:
        at = data.find(b"\0" + name.encode() + b"\0", begin)
        if at >= 0:
            found[(kind, at + 1 - begin)] = (kind, name)
    return found


def _walk(
    data: bytes, begin: int, size: int, names: dict[tuple[int, int], tuple[int, str]]
) -> dict[tuple[int, str], int]:
    found: dict[tuple[int, str], int] = {}
    at, number = begin, 0
    unpack = struct.Struct("<II").unpack_from
    while at < begin + size and len(found) < len(names):
        name, info = unpack(data, at)
        number += 1
        kind = info >> 24 & 0x1F
        if (kind, name) in names:
            found[names[(kind, name)]] = number
        fixed, each = _TAILS.get(kind, (0, 0))
        at += 12 + fixed + each * (info & 0xFFFF)
    return found

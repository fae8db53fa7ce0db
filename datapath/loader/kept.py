"""Compiled programs that are kept: LLVM takes a second on a processor, and minutes on an emulated one.

A file holds the code of all programs as the compiler made it, but for the maps, whose descriptors are
those of one process: in their place is the map's name. It is of one source, one compiler, and one set of
places in the kernel's structs; any other is passed over, and the loader compiles.
"""

import base64
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

FORMAT = 1
_WIDE = 0x18  # BPF_LD | BPF_IMM | BPF_DW: takes two instructions
_MAP = 1  # BPF_PSEUDO_MAP_FD, in the upper half of the second byte
_BYTES = 8

#: Program name -> its instructions.
Code = Mapping[str, bytes]


class NotKept(Exception):
    """Code that cannot be kept; the text says why."""


def wide(code: bytes) -> Iterable[tuple[int, int]]:
    """Where the wide loads are in `code` (bytes from its begin), and what each loads (0: a number)."""
    place = 0
    while place < len(code):
        if code[place] == _WIDE:
            yield place, code[place + 1] >> 4
            place += _BYTES
        place += _BYTES


def unbound(code: bytes, maps: Mapping[str, int]) -> tuple[bytes, list[tuple[int, str]]]:
    """The code without descriptors, and the maps that it loads: (place, name)."""
    names = {fd: name for name, fd in maps.items()}
    result, found = bytearray(code), []
    for place, kind in wide(code):
        if not kind:
            continue
        (fd,) = struct.unpack_from("=i", code, place + 4)
        if kind != _MAP or fd not in names:
            raise NotKept(f"a load of kind {kind} of {fd} at {place}")
        found.append((place, names[fd]))
        struct.pack_into("=i", result, place + 4, 0)
    return bytes(result), found


def bound(code: bytes, places: Iterable[tuple[int, str]], maps: Mapping[str, int]) -> bytes:
    """The inverse of `unbound`, for this process's descriptors. KeyError: there is no such map."""
    result = bytearray(code)
    for place, name in places:
        struct.pack_into("=i", result, place + 4, maps[name])
    return bytes(result)


def write(file: Path, key: str, programs: Code, maps: Mapping[str, int]) -> None:
    """Keep `programs` in `file`, whole or not at all. `key` says what they were made of."""
    kept = {}
    for name, code in programs.items():
        plain, places = unbound(code, maps)
        kept[name] = {"code": base64.b64encode(plain).decode(), "maps": places}
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"format": FORMAT, "key": key, "programs": kept}), encoding="ascii")
    part.chmod(0o644)
    os.replace(part, file)


def read(file: Path, key: str, maps: Mapping[str, int]) -> dict[str, bytes] | None:
    """The programs in `file`, for these maps; None where it holds none of `key`, or none at all."""
    try:
        document = json.loads(file.read_text(encoding="ascii"))
        if (document["format"], document["key"]) != (FORMAT, key):
            return None
        return {
            name: bound(base64.b64decode(entry["code"], validate=True), entry["maps"], maps)
            for name, entry in document["programs"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None

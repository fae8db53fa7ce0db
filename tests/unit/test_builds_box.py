"""The box's kernel: its types are read from the image that it boots from."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from lab.builds.box import kernel_types
from lab.errors import LabError

TYPES = b"\x9f\xeb types"


def elf(name: bytes) -> bytes:
    """A 64-bit ELF file with one section of `name` that holds TYPES."""
    names = b"\0.shstrtab\0" + name + b"\0"
    table = 64 + len(names) + len(TYPES)
    head = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 1)
    )

    def section(text: int, start: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", text, 1, 0, 0, start, size, 0, 0, 0, 0)

    return (
        head
        + names
        + TYPES
        + bytes(64)
        + section(1, 64, len(names))
        + section(11, 64 + len(names), len(TYPES))
    )


def image(kernel: bytes, packer: str) -> bytes:
    """A bzImage whose payload is `kernel`."""
    command = [packer, *(["-c"] if packer != "cat" else [])]
    payload = subprocess.run(command, input=kernel, capture_output=True, check=True).stdout
    payload += struct.pack("<I", len(kernel))
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + bytes(64) + payload


@pytest.mark.parametrize("packer", ["xz", "gzip"])
def test_types_are_found_in_a_packed_kernel(tmp_path: Path, packer: str) -> None:
    file = tmp_path / "vmlinuz"
    file.write_bytes(image(elf(b".BTF"), packer))
    assert kernel_types(file) == TYPES


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (bytes(4096), "is no kernel's image"),
        (image(b"not ELF", "gzip"), "holds no kernel"),
        (image(elf(b".text"), "gzip"), "carries no .BTF"),
        (image(elf(b".BTF"), "cat"), "packed by a program that is not known"),
    ],
)
def test_what_is_none_is_refused_by_name(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "vmlinuz"
    file.write_bytes(content)
    with pytest.raises(LabError, match=why):
        kernel_types(file)

"""bpf(2) by ctypes: just enough to load a small program, make a map and attach to a cgroup.

Source of numbers and layouts: the kernel's <linux/bpf.h>. A doctor cannot ask for a BPF library: it runs
before anything is installed that it could ask.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

SYS_BPF = 321  # on x86-64

_MAP_CREATE = 0
_PROG_LOAD = 5
_PROG_ATTACH = 8
_BTF_LOAD = 18

_LOG_BYTES = 64 * 1024
_ATTRIBUTES = 144  # at least as long as the longest that is used here; the rest is zero
_BUSY_TRIES = 5

_libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """The kernel refused a bpf(2) call: `number` (errno) and the last line of the verifier's log, if any."""

    def __init__(self, number: int, log: str) -> None:
        self.number = number
        self.log = log.strip().splitlines()
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{name}: {self.reason}" if self.reason else name)

    @property
    def reason(self) -> str:
        lines = [line for line in self.log if not line.startswith(("processed ", "verification time"))]
        return lines[-1] if lines else ""


def _bpf(command: int, attributes: bytes, log: ctypes.Array[ctypes.c_char] | None = None) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTRIBUTES, b"\0"), _ATTRIBUTES)
    for _ in range(_BUSY_TRIES):
        result = int(_libc.syscall(SYS_BPF, command, buffer, _ATTRIBUTES))
        if result >= 0:
            return result
        if ctypes.get_errno() != errno.EAGAIN:  # the verifier gives way to a signal
            break
    raise RefusedError(ctypes.get_errno(), log.value.decode(errors="replace") if log else "")


@contextmanager
def program(kind: int, code: bytes, *, attach: int = 0, target: int = 0) -> Iterator[int]:
    """Load a program of type `kind`; its descriptor. `target`: the BTF id that it is for, of tracing."""
    instructions = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(b"Dual BSD/GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attributes = struct.pack(
        "<IIQQIIQII16sIIIIQIIQII",
        kind,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_),
        1,
        _LOG_BYTES,
        ctypes.addressof(log),
        0,
        0,
        b"underpass_probe",
        0,
        attach,
        *(0, 0, 0, 0, 0, 0, 0),
        target,
    )
    handle = _bpf(_PROG_LOAD, attributes, log)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def bpf_map(
    kind: int, key: int, value: int, entries: int, *, flags: int = 0, inner: int = 0, btf: int = 0
) -> Iterator[int]:
    """Make a map; its descriptor. `inner`: a map like those it holds. `btf`: its type 1 is key and value."""
    types = (btf, 1, 1) if btf else (0, 0, 0)
    attributes = struct.pack(
        "<IIIIIII16sIIII", kind, key, value, entries, flags, inner, 0, b"underpass_probe", 0, *types
    )
    handle = _bpf(_MAP_CREATE, attributes)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def integer_btf() -> Iterator[int]:
    """Type information that holds one type, a 32-bit integer with id 1; its descriptor."""
    strings = b"\0int\0"
    kind_int, bits = 1, 32
    types = struct.pack("<IIII", 1, kind_int << 24, 4, bits)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    data = ctypes.create_string_buffer(header + types + strings, 24 + len(types) + len(strings))
    handle = _bpf(_BTF_LOAD, struct.pack("<QQIII", ctypes.addressof(data), 0, len(data), 0, 0))
    try:
        yield handle
    finally:
        os.close(handle)


def attach_to_cgroup(cgroup: int, handle: int, attach: int) -> None:
    """Attach a program to a cgroup, beside others; it goes with the cgroup."""
    allow_multi = 2
    _bpf(_PROG_ATTACH, struct.pack("<IIII", cgroup, handle, attach, allow_multi))

"""BTF and what hangs on it: kernel structs, tracing programs, iterators, socket storage.

By libbpf, as `datapath.libbpf`.
"""

import ctypes
import functools
import os
import struct
from pathlib import Path

from datapath import libbpf
from datapath.libbpf import AttachType, MapType, ProgramType, check, library

_KIND_STRUCT = 4
_LOG_BYTES = 1 << 20


class _LoadOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


class _LinkOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("iter_info", ctypes.c_void_p),
        ("iter_info_len", ctypes.c_uint32),
    )


@functools.cache
def _kernel_types(kernel: Path | None = None) -> int:
    """The running kernel's own types, or those in a file of another's."""
    load = library().btf__parse if kernel else library().btf__load_vmlinux_btf
    load.restype = ctypes.c_void_p
    found = load(os.fsencode(kernel), None) if kernel else load()
    if not found:
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel's BTF: {os.strerror(number)}")
    return int(found)


def offset_of(name: str, field: str, kernel: Path | None = None) -> int:
    """Where a field lies in a struct of the running kernel, in bytes. LookupError: it has none.

    kernel: the file with another kernel's types instead (vmlinux, or BTF alone).
    """
    types = ctypes.c_void_p(_kernel_types(kernel))
    type_by_id, name_at = library().btf__type_by_id, library().btf__name_by_offset
    type_by_id.restype, name_at.restype = ctypes.c_void_p, ctypes.c_char_p
    number = check(library().btf__find_by_name_kind(types, name.encode(), _KIND_STRUCT), f"struct {name}")
    head = type_by_id(types, number)
    _, info, _ = struct.unpack("=III", ctypes.string_at(head, 12))
    count, bitfields = info & 0xFFFF, info >> 31
    for index in range(count):
        name_offset, _, offset = struct.unpack("=III", ctypes.string_at(head + 12 + 12 * index, 12))
        if name_at(types, name_offset) == field.encode():
            return int((offset & 0xFFFFFF if bitfields else offset) // 8)
    raise LookupError(f"struct {name} has no field {field}")


def load(name: str, code: bytes, kind: ProgramType, attach: AttachType | None, hook: str = "") -> int:
    """Load a program from its instructions; returns its descriptor.

    attach: only where the kernel wants to know it at this time. hook: its name of what a tracing program or
    an iterator is for. OSError holds the verifier's last words.
    """
    target = 0
    if hook:
        assert attach is not None
        target = check(library().libbpf_find_vmlinux_btf_id(hook.encode(), int(attach)), f"hook {hook}")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    result = -1
    for level in (0, 1):  # words only when it is refused: they take the verifier longer than its work
        opts = _LoadOpts(
            sz=ctypes.sizeof(_LoadOpts),
            expected_attach_type=int(attach or 0),
            attach_btf_id=target,
            log_level=level,
            log_size=_LOG_BYTES if level else 0,
            log_buf=ctypes.addressof(log) if level else None,
        )
        result = library().bpf_prog_load(
            int(kind), name.encode(), b"GPL", code, ctypes.c_size_t(len(code) // 8), ctypes.byref(opts)
        )
        if result >= 0:
            return int(result)
    raise OSError(-result, f"{name}: {os.strerror(-result)}\n{log.value.decode()[-2000:]}")


def attach_trace(program: int) -> int:
    """Attach a tracepoint's program; returns the link's descriptor."""
    return check(library().bpf_raw_tracepoint_open(None, program), "tracepoint")


def attach_iterator(program: int, over: int | None = None) -> int:
    """Make an iterator, over a map where it is one of a map's; returns the link's descriptor.

    Reading its pin runs the program.
    """
    opts = _LinkOpts(sz=ctypes.sizeof(_LinkOpts))
    if over is not None:
        info = (ctypes.c_uint32 * 4)(over)
        opts.iter_info, opts.iter_info_len = ctypes.addressof(info), ctypes.sizeof(info)
    return check(
        library().bpf_link_create(program, 0, int(AttachType.TRACE_ITER), ctypes.byref(opts)), "iterator"
    )


def bind_map(program: int, of: int) -> None:
    """Have a program keep a map alive that it does not use."""
    check(library().bpf_prog_bind_map(program, of, None), "bind map")


def storage_create(name: str, value_size: int, flags: int) -> int:
    """Make a map of socket storage. The kernel wants types for it, though nobody needs them."""
    names = b"\0int\0value\0"
    integer = struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    value = struct.pack("=III", 5, _KIND_STRUCT << 24, value_size)
    types = integer + value
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    raw = head + types + names
    btf = check(library().bpf_btf_load(raw, ctypes.c_size_t(len(raw)), None), f"types of {name}")
    try:
        return libbpf.map_create(MapType.SK_STORAGE, name, 4, value_size, 0, flags, btf=(btf, 1, 2))
    finally:
        os.close(btf)


def pin_over(fd: int, path: Path) -> None:
    """Pin in the place of what was pinned there, in one step."""
    temporary = path.with_name(path.name + "_new")
    temporary.unlink(missing_ok=True)
    libbpf.pin(fd, temporary)
    temporary.chmod(0o600)
    temporary.rename(path)

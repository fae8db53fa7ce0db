"""libbpf.so.1 by ctypes: the one module that speaks to the BPF system call.

Thin and untyped on purpose: file descriptors and bytes in, bytes out. Typed access is in `datapath.maps`.
Works with libbpf 1.1 (Debian 12) and later. Every function raises OSError with the kernel's errno.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datapath.abi import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_ALLOW_MULTI,
    BPF_F_CLONE,
    BPF_F_NO_PREALLOC,
    BPF_F_REPLACE,
    BPF_NOEXIST,
    AttachType,
    MapType,
    ProgramType,
)

__all__ = [
    "BPF_ANY",
    "BPF_EXIST",
    "BPF_F_ALLOW_MULTI",
    "BPF_F_CLONE",
    "BPF_F_NO_PREALLOC",
    "BPF_F_REPLACE",
    "BPF_NOEXIST",
    "AttachType",
    "MapType",
    "ProgramType",
]

TAG_SIZE = 8
_CONTEXT_SPACE = 512  # the kernel returns the whole struct __sk_buff, of its own size


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _ProgInfo(ctypes.Structure):
    """The head of struct bpf_prog_info up to verified_insns (kernel 5.16)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * TAG_SIZE),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
        ("attach_btf_obj_id", ctypes.c_uint32),
    )


class _MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _AttachOpts(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("replace_fd", ctypes.c_int))


class _QueryOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_void_p),
        ("prog_cnt", ctypes.c_uint32),
        ("_unused", ctypes.c_uint32),
        ("prog_attach_flags", ctypes.c_void_p),
    )


class _TestRunOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library; `datapath.tracing` uses it too."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    for function in (
        "bpf_map_lookup_elem",
        "bpf_map_update_elem",
        "bpf_map_delete_elem",
        "bpf_map_get_next_key",
    ):
        getattr(library, function).restype = ctypes.c_int
    library.ring_buffer__new.restype = ctypes.c_void_p
    library.ring_buffer__new.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    library.ring_buffer__poll.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.ring_buffer__consume.argtypes = (ctypes.c_void_p,)
    library.ring_buffer__free.argtypes = (ctypes.c_void_p,)
    library.libbpf_set_print(None)
    return library


def check(result: int, what: str) -> int:
    """A libbpf result, or OSError. libbpf 1.x returns -errno."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def _buffer(data: bytes) -> Any:
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


# Maps


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says about a map. Sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


def map_create(
    map_type: MapType,
    name: str,
    key_size: int,
    value_size: int,
    entries: int,
    flags: int = 0,
    inner: int = 0,
    btf: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """Make a map; returns its file descriptor. inner: descriptor of a template for maps of maps. btf: type
    information that some kinds need: descriptor, ids of the key's and the value's type.
    """
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), inner_map_fd=inner, map_flags=flags)
    opts.btf_fd, opts.btf_key_type_id, opts.btf_value_type_id = btf
    result = library().bpf_map_create(
        int(map_type), name.encode()[:15], key_size, value_size, entries, ctypes.byref(opts)
    )
    return check(result, f"map {name}")


def map_info(fd: int) -> MapInfo:
    """Type and sizes of a map."""
    info = _MapInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "map info")
    return MapInfo(
        info.type,
        info.id,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.map_flags,
        info.name.decode(),
    )


def map_by_id(map_id: int) -> int:
    """Descriptor of a map that lives."""
    return check(library().bpf_map_get_fd_by_id(map_id), f"map {map_id}")


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key, None when there is none. value_size: of all CPUs together for per-CPU maps."""
    value = ctypes.create_string_buffer(value_size)
    result = library().bpf_map_lookup_elem(fd, key, value)
    if result == -2:
        return None
    check(result, "map lookup")
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
    """Write one entry."""
    check(library().bpf_map_update_elem(fd, key, value, ctypes.c_uint64(flags)), "map update")


def map_delete(fd: int, key: bytes) -> bool:
    """Delete one entry; False when there was none."""
    result = library().bpf_map_delete_elem(fd, key)
    if result == -2:
        return False
    check(result, "map delete")
    return True


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Keys one by one; entries that come or go meanwhile may be missed or seen twice."""
    previous: bytes | None = None
    following = ctypes.create_string_buffer(key_size)
    while True:
        result = library().bpf_map_get_next_key(fd, previous, following)
        if result == -2:
            return
        check(result, "map next key")
        previous = following.raw
        yield previous


def map_items(fd: int, key_size: int, value_size: int, batch: int = 4096) -> Iterator[tuple[bytes, bytes]]:
    """All entries, many a system call. value_size as for `map_lookup`."""
    keys = ctypes.create_string_buffer(key_size * batch)
    values = ctypes.create_string_buffer(value_size * batch)
    position = ctypes.create_string_buffer(max(key_size, 8))
    count = ctypes.c_uint32()
    first = True
    while True:
        count.value = batch
        result = library().bpf_map_lookup_batch(
            fd, None if first else position, position, keys, values, ctypes.byref(count), None
        )
        if result not in (0, -2):
            check(result, "map lookup batch")
        raw_keys, raw_values = keys.raw, values.raw
        for i in range(count.value):
            yield (
                raw_keys[i * key_size : (i + 1) * key_size],
                raw_values[i * value_size : (i + 1) * value_size],
            )
        if result == -2:
            return
        first = False


def map_update_many(fd: int, entries: Sequence[tuple[bytes, bytes]], flags: int = BPF_ANY) -> None:
    """Write many entries by one system call. On an error some may be written."""
    if not entries:
        return
    keys = _buffer(b"".join(key for key, _ in entries))
    values = _buffer(b"".join(value for _, value in entries))
    count = ctypes.c_uint32(len(entries))
    opts = (ctypes.c_uint64 * 3)(24, flags, 0)
    check(
        library().bpf_map_update_batch(fd, keys, values, ctypes.byref(count), ctypes.byref(opts)),
        "map update batch",
    )


def map_delete_many(fd: int, keys: Sequence[bytes]) -> None:
    """Delete many entries by one system call; keys that are not there are passed over."""
    remaining = list(keys)
    while remaining:
        count = ctypes.c_uint32(len(remaining))
        result = library().bpf_map_delete_batch(fd, _buffer(b"".join(remaining)), ctypes.byref(count), None)
        if result == 0:
            return
        if result != -2:
            check(result, "map delete batch")
        remaining = remaining[count.value + 1 :]


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU entry has."""
    return check(library().libbpf_num_possible_cpus(), "possible CPUs")


# Pins


def pin(fd: int, path: Path) -> None:
    """Pin a map, program or link; the path must not exist."""
    check(library().bpf_obj_pin(fd, os.fsencode(path)), str(path))


def open_pinned(path: Path) -> int:
    """Descriptor of what is pinned at a path."""
    return check(library().bpf_obj_get(os.fsencode(path)), str(path))


# Programs


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says about a program. instructions: after the verifier; verified: that it walked."""

    id: int
    name: str
    tag: str
    btf_id: int
    instructions: int
    jited_bytes: int
    verified: int


def program_info(fd: int) -> ProgramInfo:
    """Name, id and sizes of a program."""
    info = _ProgInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    check(library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "program info")
    return ProgramInfo(
        info.id,
        info.name.decode(),
        bytes(info.tag).hex(),
        info.btf_id,
        info.xlated_prog_len // 8,
        info.jited_prog_len,
        info.verified_insns,
    )


def program_by_id(program_id: int) -> int:
    """Descriptor of a loaded program."""
    return check(library().bpf_prog_get_fd_by_id(program_id), f"program {program_id}")


def program_attach(program: int, target: int, attach: AttachType, flags: int = 0, replace: int = -1) -> None:
    """Attach to a device (target: ifindex) or a cgroup (target: descriptor).

    replace: descriptor of the program to take the place of, in one step (flags must hold BPF_F_REPLACE).
    """
    opts = _AttachOpts(sz=ctypes.sizeof(_AttachOpts), flags=flags, replace_fd=max(replace, 0))
    check(
        library().bpf_prog_attach_opts(program, target, int(attach), ctypes.byref(opts)),
        f"attach {attach.name}",
    )


def program_detach(program: int, target: int, attach: AttachType) -> None:
    """Take a program off a device or a cgroup."""
    check(library().bpf_prog_detach2(program, target, int(attach)), f"detach {attach.name}")


def programs_attached(target: int, attach: AttachType) -> list[int]:
    """Ids of the programs at a hook of a device or a cgroup, in the order they run."""
    ids = (ctypes.c_uint32 * 64)()
    opts = _QueryOpts(
        sz=ctypes.sizeof(_QueryOpts), prog_ids=ctypes.cast(ids, ctypes.c_void_p).value, prog_cnt=64
    )
    check(library().bpf_prog_query_opts(target, int(attach), ctypes.byref(opts)), f"query {attach.name}")
    return list(ids[: opts.prog_cnt])


@dataclass(frozen=True, slots=True)
class TestRun:
    """Result of running a program on a packet: what it returned, the packet after, nanoseconds per run."""

    result: int
    data: bytes
    context: bytes
    duration: int


def program_run(program: int, data: bytes, context: bytes = b"", repeat: int = 1) -> TestRun:
    """Run a tc program on a packet (BPF_PROG_RUN). context: a struct __sk_buff, returned as it is after."""
    out = ctypes.create_string_buffer(len(data) + 1024)
    context_in, context_out = _buffer(context or b"\0"), ctypes.create_string_buffer(_CONTEXT_SPACE)
    data_in = _buffer(data)
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.addressof(data_in),
        data_size_in=len(data),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        repeat=repeat,
    )
    if context:
        opts.ctx_in, opts.ctx_size_in = ctypes.addressof(context_in), len(context)
        opts.ctx_out, opts.ctx_size_out = ctypes.addressof(context_out), _CONTEXT_SPACE
    check(library().bpf_prog_test_run_opts(program, ctypes.byref(opts)), "program run")
    result = ctypes.c_int32(opts.retval).value
    return TestRun(result, out.raw[: opts.data_size_out], context_out.raw[: opts.ctx_size_out], opts.duration)


# Ring buffer


class RingReader:
    """Reads a ring buffer. `poll` calls `handle` with the bytes of each record."""

    def __init__(self, fd: int, handle: Callable[[bytes], None]) -> None:
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

        def callback(_context: int, data: int, size: int) -> int:
            handle(ctypes.string_at(data, size))
            return 0

        self._callback = prototype(callback)
        self._ring = library().ring_buffer__new(fd, self._callback, None, None)
        if not self._ring:
            number = ctypes.get_errno()
            raise OSError(number, f"ring buffer: {os.strerror(number)}")

    def poll(self, timeout: float) -> int:
        """Wait at most `timeout` seconds for the wake-up mark, then read all there is; how many records."""
        library().ring_buffer__poll(self._ring, int(timeout * 1000))
        return self.consume()

    def consume(self) -> int:
        """Read all there is without waiting."""
        return check(library().ring_buffer__consume(self._ring), "ring buffer")

    def close(self) -> None:
        """Give the mapping back."""
        library().ring_buffer__free(self._ring)
        self._ring = None

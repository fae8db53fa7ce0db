"""Probes that load each program, map and helper that the datapath stands on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lab.doctor.bpf import btf
from lab.doctor.bpf.assembler import answer
from lab.doctor.bpf.programs import (
    ATTACH_TRACE_ITER,
    ATTACH_TRACE_RAW_TP,
    HELPERS,
    KINDS,
    MAPS,
    TRACING,
    Map,
    calling,
    smallest,
)
from lab.doctor.bpf.syscall import RefusedError, bpf_map, integer_btf, program
from lab.doctor.finding import Probe, Seen, fail, ok, warn

NEWER_KERNEL = (
    "use a kernel of 6.6 or newer with BPF built in, as Debian 13's own "
    "(apt-get install linux-image-amd64, then boot it)"
)
PERMITTED = (
    "run as root of the machine itself; in a container or sandbox, allow bpf(2) "
    "(CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN, no seccomp filter on it)"
)

#: Tracing targets: (BTF kind, name of the type, name for people, attach point).
_ITERATOR = (btf.FUNC, "bpf_iter_tcp", "iter/tcp", ATTACH_TRACE_ITER)
_TRACEPOINT = (btf.TYPEDEF, "btf_trace_sched_switch", "tp_btf/sched_switch", ATTACH_TRACE_RAW_TP)


def probes() -> list[Probe]:
    return [
        Probe("bpf-programs", "BPF program types", programs),
        Probe("bpf-maps", "BPF map types", maps),
        Probe("bpf-helpers", "BPF helpers", helpers),
        Probe("bpf-types", "The kernel's type information (BTF)", types, root=False),
        Probe("bpf-tracing", "BPF tracing programs", tracing),
    ]


def programs() -> Seen:
    """Load the smallest program of each type at each attach point."""
    loaded: list[str] = []
    refused: dict[str, RefusedError] = {}
    for kind in KINDS:
        try:
            with program(kind.type, smallest(kind), attach=kind.attach):
                loaded.append(kind.name)
        except RefusedError as fault:
            refused[kind.name] = fault
    required = {kind.name for kind in KINDS if kind.required}
    return _judge("program types", loaded, refused, required)


def maps() -> Seen:
    """Make a map of each type."""
    loaded: list[str] = []
    refused: dict[str, RefusedError] = {}
    for shape in MAPS:
        try:
            with _made(shape):
                loaded.append(shape.name)
        except RefusedError as fault:
            refused[shape.name] = fault
    return _judge("map types", loaded, refused, {shape.name for shape in MAPS})


def helpers() -> Seen:
    """Load a program that calls the helper, for each helper and program type."""
    shapes = {shape.name: shape for shape in MAPS}
    loaded: list[str] = []
    refused: dict[str, RefusedError] = {}
    for helper in HELPERS:
        name = f"{helper.name} in {helper.kind}"
        try:
            with ExitStack() as stack:
                made = {need: stack.enter_context(_made(shapes[need])) for need in helper.maps}
                kind, code = calling(helper, made)
                stack.enter_context(program(kind.type, code, attach=kind.attach))
                loaded.append(name)
        except RefusedError as fault:
            refused[name] = fault
    return _judge("helpers", loaded, refused, {f"{helper.name} in {helper.kind}" for helper in HELPERS})


def types() -> Seen:
    """Read the kernel's type information and find a type in it that every kernel has."""
    fix = f"{NEWER_KERNEL}; it must be built with CONFIG_DEBUG_INFO_BTF"
    try:
        data = btf.VMLINUX.read_bytes()
        found = btf.find(data, {(btf.STRUCT, "sock")})
    except FileNotFoundError:
        return fail(f"no {btf.VMLINUX}", "the kernel was built without type information", fix)
    except (OSError, btf.NotBtfError) as fault:
        return fail(str(fault), f"{btf.VMLINUX} cannot be used", fix)
    if not found:
        return fail(f"{len(data)} bytes, struct sock not in them", f"{btf.VMLINUX} is not whole", fix)
    return ok(f"{len(data) >> 10} KiB; struct sock has id {found[btf.STRUCT, 'sock']}")


def tracing() -> Seen:
    """Load an iterator over TCP sockets and a tracepoint with types: comfort, not need."""
    targets = (_ITERATOR, _TRACEPOINT)
    try:
        ids = btf.find(btf.VMLINUX.read_bytes(), {target[:2] for target in targets})
    except (OSError, btf.NotBtfError):
        ids = {}
    loaded: list[str] = []
    refused: dict[str, RefusedError] = {}
    for kind, type_name, name, attach in targets:
        try:
            if (kind, type_name) not in ids:
                raise RefusedError(errno.ENOENT, f"the kernel has no type {type_name}")
            with program(TRACING, answer(0), attach=attach, target=ids[kind, type_name]):
                loaded.append(name)
        except RefusedError as fault:
            refused[name] = fault
    return _judge("tracing programs", loaded, refused, set())


@contextmanager
def _made(shape: Map) -> Iterator[int]:
    """A map of this shape, with the inner map or the types that it wants."""
    with ExitStack() as stack:
        inner = stack.enter_context(bpf_map(2, 4, 4, 8)) if shape.inner else 0
        typed = stack.enter_context(integer_btf()) if shape.typed else 0
        yield stack.enter_context(
            bpf_map(
                shape.type,
                shape.key,
                shape.value,
                shape.entries,
                flags=shape.flags,
                inner=inner,
                btf=typed,
            )
        )


def _judge(what: str, loaded: list[str], refused: dict[str, RefusedError], required: set[str]) -> Seen:
    if not refused:
        return ok(f"all {len(loaded)} load")
    evidence = "; ".join(f"{name}: {fault}" for name, fault in refused.items())
    if not loaded and {fault.number for fault in refused.values()} <= {errno.EPERM, errno.EACCES}:
        return fail(evidence, "bpf(2) is not permitted here", PERMITTED)
    if not loaded and {fault.number for fault in refused.values()} == {errno.ENOSYS}:
        return fail(evidence, "the kernel was built without bpf(2)", NEWER_KERNEL)
    lacking = sorted(required & set(refused))
    if lacking:
        return fail(evidence, f"this kernel refuses {what} that the datapath needs", NEWER_KERNEL)
    return warn(
        evidence,
        f"this kernel refuses {what} that Underpass uses where it has them; the lab runs without",
        NEWER_KERNEL,
    )

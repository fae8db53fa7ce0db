"""Attaching pinned programs to devices and cgroups, in place.

tcx is used and not a clsact qdisc with filters: the program is bound to the device by one system call,
needs neither a qdisc nor netlink, is replaced in one step (BPF_F_REPLACE: no packet passes between the old
and the new one), goes away with the device, and stands in an ordered list beside the programs of others.
Kernel 6.6.

A program is ours when it has the name of one of ours, so attaching twice replaces, and never adds a second
copy. The agent calls `attach_pod` with the host's end of a veth, before that link is up.
"""

import os
from pathlib import Path

from datapath import libbpf
from datapath.libbpf import AttachType
from datapath.maps.opened import DEFAULT_PINS
from datapath.programs import Program, Target, pin_of, programs_for


def attached(target: int, attach: AttachType, name: str) -> int | None:
    """Id of our program of this name at a hook, None when it is not there.

    target: an ifindex for tcx hooks, the descriptor of a directory for cgroup hooks.
    """
    for program_id in libbpf.programs_attached(target, attach):
        try:
            fd = libbpf.program_by_id(program_id)
        except FileNotFoundError:
            continue
        try:
            if libbpf.program_info(fd).name == name:
                return program_id
        finally:
            os.close(fd)
    return None


def attach(program: Program, fd: int, target: int) -> bool:
    """Attach one program, or replace its older version; False when this very program is there already."""
    if program.attach is None:
        raise ValueError(f"{program.name} is reached by tail call and is not attached")
    flags = libbpf.BPF_F_ALLOW_MULTI if program.is_cgroup else 0
    present = attached(target, program.attach, program.name)
    if present is None:
        libbpf.program_attach(fd, target, program.attach, flags)
        return True
    if present == libbpf.program_info(fd).id:
        return False
    old = libbpf.program_by_id(present)
    try:
        libbpf.program_attach(fd, target, program.attach, flags | libbpf.BPF_F_REPLACE, old)
    finally:
        os.close(old)
    return True


def detach(program: Program, target: int) -> bool:
    """Take one program off; False when it was not there."""
    if program.attach is None:
        return False
    present = attached(target, program.attach, program.name)
    if present is None:
        return False
    fd = libbpf.program_by_id(present)
    try:
        libbpf.program_detach(fd, target, program.attach)
    finally:
        os.close(fd)
    return True


def attach_all(kind: Target, target: int, pins: Path = DEFAULT_PINS) -> int:
    """Attach the pinned programs of one kind to a device or cgroup; how many were new there."""
    changed = 0
    for program in programs_for(kind):
        fd = libbpf.open_pinned(pin_of(pins, program.name))
        try:
            changed += attach(program, fd, target)
        finally:
            os.close(fd)
    return changed


def detach_all(kind: Target, target: int) -> int:
    """Take the programs of one kind off; how many there were."""
    return sum(detach(program, target) for program in programs_for(kind))


def attach_pod(ifindex: int, pins: Path = DEFAULT_PINS) -> int:
    """Both programs at the host's end of a pod's veth. From here on the pod has what its tables allow:
    nothing until its endpoint and its policy are written. FileNotFoundError: the loader has not been run.
    """
    return attach_all(Target.POD, ifindex, pins)


def pod_is_attached(ifindex: int) -> bool:
    """Both programs are there."""
    return all(
        program.attach is not None and attached(ifindex, program.attach, program.name) is not None
        for program in programs_for(Target.POD)
    )

"""The loader's verbs: up, down, status."""

import contextlib
import fcntl
import ipaddress
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datapath import attach, libbpf, links, tables
from datapath.loader import layout, redirect
from datapath.loader.compiler import Loaded, load_all, source_digest
from datapath.loader.configuration import Configuration
from datapath.loader.errors import Exit, LoaderError
from datapath.programs import PROGRAMS, Target, pin_of, programs_for
from datapath.redirect_tables import PortKey, PortRule

MINIMUM_KERNEL = (6, 6)
_BPF_FS_MAGIC = 0xCAFE4A11
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def up(configuration: Configuration, *, force: bool = False, kept: Sequence[Path] = ()) -> dict[str, Any]:
    """Make the node's datapath what this version and configuration say. Idempotent.

    Nothing is loaded when the pinned programs are of this source and boot, and nothing compiled when one of
    the files `kept` holds them, unless `force`.
    """
    _check_environment(configuration)
    pins = configuration.pins
    with _locked(configuration.state):
        pins.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in ("programs", "links"):
            (pins / folder).mkdir(exist_ok=True, mode=0o700)
        maps = layout.prepare(pins / "maps", configuration.map_entries)
        descriptors = {item.spec.name: item.fd for item in maps}
        moved = any(item.fresh for item in maps)
        state = _read_state(configuration.state)
        current = not force and not moved and _is_current(configuration, state)
        loaded, compiled = ([], False) if current else load_all(descriptors, kept, force=force)
        overlay = _prepare_host(configuration)
        _write_config(configuration, descriptors["config"], overlay)
        _write_ports(configuration, descriptors["plain_ports"])
        layout.settle(maps)
        if loaded:
            state = _pin_programs(pins, loaded)
        _set_continuations(pins, descriptors["continuations"])
        fresh = any(item.fresh for item in maps if item.spec.name in layout.REDIRECT_MAPS)
        _attach_redirect(pins, descriptors, fresh=fresh)
        changed = _attach_everything(configuration, overlay)
        _write_state(configuration.state, state)
    return {"loaded": bool(loaded), "compiled": compiled, "attached": changed, **state}


def status(configuration: Configuration) -> dict[str, Any]:
    """What is pinned and attached."""
    state = _read_state(configuration.state)
    pins = configuration.pins
    return {
        "current": _is_current(configuration, state),
        "maps": sorted(path.name for path in (pins / "maps").glob("*")),
        "programs": sorted(path.name for path in (pins / "programs").glob("*")),
        "pods": [index for index in links.link_indexes() if attach.pod_is_attached(index)],
        "overlay": _has_all(Target.OVERLAY, [configuration.overlay_device]),
        "host": _has_all(Target.HOST, configuration.devices),
        "cgroup": _cgroup_has_all(configuration.cgroup),
        "redirect": redirect.status(pins),
        **state,
    }


def down(configuration: Configuration) -> dict[str, Any]:
    """Take everything away. Pods lose their network first, so none is left without policy."""
    with _locked(configuration.state):
        pods = [index for index in links.link_indexes() if attach.pod_is_attached(index)]
        for index in pods:
            links.set_down(index)
            attach.detach_all(Target.POD, index)
        for device in configuration.devices:
            with contextlib.suppress(OSError):
                attach.detach_all(Target.HOST, links.ifindex(device))
        with _directory(configuration.cgroup) as fd:
            attach.detach_all(Target.CGROUP, fd)
        accelerated = redirect.detach_all(configuration.pins)
        links.remove_overlay(configuration.overlay_device)
        links.remove_masquerade()
        removed = 0
        for folder in ("programs", "links", "maps"):
            for path in (configuration.pins / folder).glob("*"):
                path.unlink()
                removed += 1
            with contextlib.suppress(OSError):
                (configuration.pins / folder).rmdir()
        configuration.state.unlink(missing_ok=True)
    return {"pods": pods, "pins": removed, "accelerated": accelerated}


def _check_environment(configuration: Configuration) -> None:
    release = os.uname().release
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if version < MINIMUM_KERNEL:
        raise LoaderError(
            f"kernel {release} is too old",
            hint=f"kernel {'.'.join(map(str, MINIMUM_KERNEL))} or newer is needed",
        )
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    kinds = {line.split()[1]: line.split()[2] for line in mounts}
    root = next((kinds[str(path)] for path in configuration.pins.parents if str(path) in kinds), "")
    if root != "bpf":
        raise LoaderError(
            f"{configuration.pins} is not on a BPF file system",
            hint="mount one: mount -t bpf bpf /sys/fs/bpf",
        )
    for device in configuration.devices:
        try:
            links.ifindex(device)
        except OSError as error:
            raise LoaderError(
                f"no device {device}", hint="`devices` in the configuration file", code=Exit.CONFIGURATION
            ) from error


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise LoaderError(
            f"cannot open the cgroup {path}: {error}", hint="`cgroup` must be a cgroup v2 directory"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(state, indent=1) + "\n")
    temporary.rename(path)


def _is_current(configuration: Configuration, state: dict[str, Any]) -> bool:
    return (
        state.get("source") == source_digest()
        and state.get("boot") == _BOOT_ID.read_text().strip()
        and all(pin_of(configuration.pins, program.name).exists() for program in PROGRAMS)
    )


def _prepare_host(configuration: Configuration) -> int:
    try:
        overlay = links.ensure_overlay(
            configuration.overlay_device, configuration.overlay_port, configuration.devices[0]
        )
        links.ensure_forwarding()
        links.ensure_masquerade(
            configuration.pod_range, configuration.overlay_device, configuration.overlay_port
        )
    except OSError as error:
        raise LoaderError(
            f"cannot set the node up: {error}", hint="root in the node's own namespace"
        ) from error
    return overlay


def _write_config(configuration: Configuration, fd: int, overlay: int) -> None:
    """The node's table; the router address that the agent has written stays."""
    key = tables.Index(index=0).pack()
    old = libbpf.map_lookup(fd, key, tables.Config.size())
    router = tables.Config.unpack(old).router if old else ipaddress.IPv6Address(0)
    table = configuration.table(
        namespace=links.namespace_cookie(),
        overlay=overlay,
        underlay=links.ifindex(configuration.devices[0]),
        router=router,
    )
    libbpf.map_update(fd, key, table.pack())


def _write_ports(configuration: Configuration, fd: int) -> None:
    wanted = {PortKey(port=port).pack() for port in configuration.plain_ports}
    for key in set(libbpf.map_keys(fd, PortKey.size())) - wanted:
        libbpf.map_delete(fd, key)
    for key in wanted:
        libbpf.map_update(fd, key, PortRule().pack())


def _pin_programs(pins: Path, loaded: list[Loaded]) -> dict[str, Any]:
    """Pin new programs in the place of old ones; returns the state file's content."""
    for item in loaded:
        path = pin_of(pins, item.program.name)
        temporary = path.with_name(path.name + layout.NEW_SUFFIX)
        temporary.unlink(missing_ok=True)
        libbpf.pin(item.fd, temporary)
        temporary.chmod(0o600)
        temporary.rename(path)
    return {
        "source": source_digest(),
        "boot": _BOOT_ID.read_text().strip(),
        "figures": {item.program.name: asdict(item.info) for item in loaded},
    }


def _set_continuations(pins: Path, fd: int) -> None:
    for program in programs_for(Target.CONTINUATION):
        if program.slot is None:
            raise ValueError(f"{program.name} has no slot")
        pinned = libbpf.open_pinned(pin_of(pins, program.name))
        libbpf.map_update(fd, int(program.slot).to_bytes(4, "little"), pinned.to_bytes(4, "little"))
        os.close(pinned)


def _attach_redirect(pins: Path, maps: Mapping[str, int], *, fresh: bool) -> None:
    try:
        redirect.attach_all(pins, maps, fresh=fresh)
    except OSError as error:
        raise LoaderError(
            f"cannot attach socket redirect: {error}", hint="see `status`", code=Exit.ATTACH
        ) from error


def _attach_everything(configuration: Configuration, overlay: int) -> int:
    """Attach or replace at the node's devices, its cgroup, and every pod that has programs already."""
    pins = configuration.pins
    try:
        changed = attach.attach_all(Target.OVERLAY, overlay, pins)
        own = [links.ifindex(device) for device in configuration.devices]
        for index in own:
            changed += attach.attach_all(Target.HOST, index, pins)
        for index in set(links.link_indexes()) - set(own):
            attach.detach_all(Target.HOST, index)  # a device that the configuration no longer names
        with _directory(configuration.cgroup) as fd:
            changed += attach.attach_all(Target.CGROUP, fd, pins)
        for index in links.link_indexes():
            if attach.pod_is_attached(index):
                changed += attach.attach_pod(index, pins)
    except OSError as error:
        raise LoaderError(f"cannot attach: {error}", hint="see `status`", code=Exit.ATTACH) from error
    return changed


def _has_all(target: Target, devices: tuple[str, ...] | list[str]) -> bool:
    try:
        indexes = [links.ifindex(device) for device in devices]
    except OSError:
        return False
    return all(
        program.attach is not None and attach.attached(index, program.attach, program.name) is not None
        for index in indexes
        for program in programs_for(target)
    )


def _cgroup_has_all(path: Path) -> bool:
    with _directory(path) as fd:
        return all(
            program.attach is not None and attach.attached(fd, program.attach, program.name) is not None
            for program in programs_for(Target.CGROUP)
        )

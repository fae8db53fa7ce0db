"""Making, re-using and migrating the pinned maps.

A map that is pinned with the layout of this version is used as it is, so connections and tables outlive an
upgrade. One that differs in its number of entries alone is copied into a new one. A ring of another layout
is made anew: the events that wait in it are lost, no connection is. Any other difference is refused, with the
map and the reason, before anything is changed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datapath import libbpf, tracing
from datapath.libbpf import MapInfo, MapType
from datapath.loader.errors import Exit, LoaderError
from datapath.maps.spec import RULES, MapSpec, pinned, specs
from datapath.tables import LayoutVersion, MapName

_NOT_COPIED = (MapType.RINGBUF, MapType.PROG_ARRAY)
_PER_CPU = (MapType.PERCPU_ARRAY, MapType.PERCPU_HASH)
LAYOUTS = "layouts"
# Sockets hold on to these, and what they count must not miss a byte.
REDIRECT_MAPS = ("sockets", "states", "streams", "offers", "senders", "readers")
# A BPF file system refuses names with a dot.
NEW_SUFFIX = "_new"


@dataclass(frozen=True, slots=True)
class PinnedMap:
    """A map that is ready: its descriptor, and whether a pin has to be moved to it (`settle`)."""

    spec: MapSpec
    fd: int
    path: Path
    fresh: bool


def prepare(folder: Path, entries: Mapping[str, int]) -> list[PinnedMap]:
    """Open, make or migrate every map. Pins are not touched before `settle`. entries: sizes by name."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    versions = _versions(folder / LAYOUTS)
    faults = [
        fault
        for spec in pinned()
        if (folder / spec.name).exists() and (fault := _fault(spec, folder / spec.name, versions))
    ]
    if faults:
        raise LoaderError(
            "pinned maps have another layout: " + "; ".join(faults),
            hint="drain the node, run `down`, then `up`: connections of pods on it will break",
            code=Exit.LAYOUT,
        )
    template = specs()[RULES]
    inner = _create(template, template.entries)
    try:
        return [
            _prepare_one(spec, folder / spec.name, entries.get(spec.name, spec.entries), inner, versions)
            for spec in pinned()
        ]
    finally:
        os.close(inner)


def settle(maps: list[PinnedMap]) -> None:
    """Point every pin at its map (one step for each) and note the layout versions."""
    layouts = next(item for item in maps if item.spec.name == LAYOUTS)
    for item in maps:
        if item.fresh:
            temporary = item.path.with_name(item.path.name + NEW_SUFFIX)
            temporary.unlink(missing_ok=True)
            libbpf.pin(item.fd, temporary)
            temporary.chmod(0o600)
            temporary.rename(item.path)
        libbpf.map_update(
            layouts.fd, MapName(name=item.spec.name).pack(), LayoutVersion(version=item.spec.version).pack()
        )


def _versions(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    fd = libbpf.open_pinned(path)
    try:
        items = libbpf.map_items(fd, MapName.size(), LayoutVersion.size())
        return {MapName.unpack(key).name: LayoutVersion.unpack(value).version for key, value in items}
    finally:
        os.close(fd)


def _fault(spec: MapSpec, path: Path, versions: Mapping[str, int]) -> str | None:
    fd = libbpf.open_pinned(path)
    try:
        info = libbpf.map_info(fd)
    finally:
        os.close(fd)
    version = versions.get(spec.name)
    if version is not None and version != spec.version and spec.kind is not MapType.RINGBUF:
        return f"{spec.name} has layout {version}, this version needs {spec.version}"
    found, wanted = _shape(info), (spec.kind, spec.key_size, spec.value_size, spec.flags)
    if found != wanted:
        return (
            f"{spec.name} has (type, key, value, flags) {found}, this version needs {tuple(map(int, wanted))}"
        )
    return None


def _shape(info: MapInfo) -> tuple[int, int, int, int]:
    return info.type, info.key_size, info.value_size, info.flags & ~_KERNEL_FLAGS


# Flags that the kernel itself adds (BPF_F_RDONLY_PROG and the like are not used here).
_KERNEL_FLAGS = 0


def _create(spec: MapSpec, entries: int, inner: int = 0) -> int:
    if spec.kind is MapType.SK_STORAGE:
        return tracing.storage_create(spec.name, spec.value_size, spec.flags)
    return libbpf.map_create(
        spec.kind,
        spec.name,
        spec.key_size,
        spec.value_size,
        entries,
        spec.flags,
        inner if spec.kind is MapType.HASH_OF_MAPS else 0,
    )


def _prepare_one(
    spec: MapSpec, path: Path, entries: int, inner: int, versions: Mapping[str, int]
) -> PinnedMap:
    # What old programs wrote into a ring must not be read by this version's layout.
    stale = spec.kind is MapType.RINGBUF and versions.get(spec.name, spec.version) != spec.version
    if stale or not path.exists():
        return PinnedMap(spec, _create(spec, entries, inner), path, fresh=True)
    old = libbpf.open_pinned(path)
    if libbpf.map_info(old).max_entries == entries:
        return PinnedMap(spec, old, path, fresh=False)
    if spec.name in REDIRECT_MAPS:
        os.close(old)
        raise LoaderError(
            f"{spec.name} cannot change its size while its sockets live",
            hint="drain the node, run `down`, then `up`",
            code=Exit.LAYOUT,
        )
    new = _create(spec, entries, inner)
    try:
        _copy(spec, old, new)
    except OSError as error:
        os.close(new)
        raise LoaderError(
            f"{spec.name} does not fit into {entries} entries: {error}",
            hint="choose a larger size",
            code=Exit.LAYOUT,
        ) from error
    finally:
        os.close(old)
    return PinnedMap(spec, new, path, fresh=True)


def _copy(spec: MapSpec, old: int, new: int) -> None:
    if spec.kind in _NOT_COPIED:
        return
    if spec.kind is MapType.HASH_OF_MAPS:
        for key in libbpf.map_keys(old, spec.key_size):
            value = libbpf.map_lookup(old, key, spec.value_size)
            if value is not None:
                inner = libbpf.map_by_id(int.from_bytes(value, "little"))
                libbpf.map_update(new, key, inner.to_bytes(4, "little"))
                os.close(inner)
        return
    size = spec.value_size * libbpf.possible_cpus() if spec.kind in _PER_CPU else spec.value_size
    limit = libbpf.map_info(new).max_entries
    for key, value in libbpf.map_items(old, spec.key_size, size):
        if spec.kind in (MapType.ARRAY, MapType.PERCPU_ARRAY) and int.from_bytes(key, "little") >= limit:
            continue
        libbpf.map_update(new, key, value)

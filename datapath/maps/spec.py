"""What each map is: read from `include/maps.h`, sizes from the records of `datapath.tables`.

So the number of entries, flags and layout version stand in one place, the C header.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from datapath import redirect_tables, tables
from datapath.codec import Record
from datapath.libbpf import BPF_F_CLONE, BPF_F_NO_PREALLOC, MapType

HEADER = Path(__file__).parent.parent / "include" / "maps.h"
_ROW = re.compile(
    r"^\t(?:MAP_OF|RULES|MAP_OF_RULES|RING|PROGRAMS)"
    r"\((\w+), (\w+), (\w+), (\w+), (\d+), (\w+), (\d+)\)",
    re.MULTILINE,
)
_FLAGS = {
    "0": 0,
    "BPF_F_NO_PREALLOC": BPF_F_NO_PREALLOC,
    "STORAGE_FLAGS": BPF_F_NO_PREALLOC | BPF_F_CLONE,
}
RULES = "rules"
_DESCRIPTOR_BYTES = 4


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map. key and value are None where the kernel alone knows them (ring, programs, maps)."""

    name: str
    kind: MapType
    key: type[Record] | None
    value: type[Record] | None
    key_size: int
    value_size: int
    entries: int
    flags: int
    version: int


@functools.cache
def records() -> dict[str, type[Record]]:
    """Record classes by the name of their C struct."""
    return {
        candidate.C_NAME: candidate
        for candidate in {**vars(tables), **vars(redirect_tables)}.values()
        if isinstance(candidate, type) and issubclass(candidate, Record) and candidate is not Record
    }


def _spec(row: tuple[str, ...]) -> MapSpec:
    name, kind, key, value, entries, flags, version = row
    map_type = MapType[kind]
    key_record, value_record = records().get(key), records().get(value)
    key_size = key_record.size() if key_record else 0
    value_size = value_record.size() if value_record else 0
    if map_type in (MapType.HASH_OF_MAPS, MapType.PROG_ARRAY):
        key_size, value_size = key_size or _DESCRIPTOR_BYTES, _DESCRIPTOR_BYTES
    return MapSpec(
        name,
        map_type,
        key_record,
        value_record,
        key_size,
        value_size,
        int(entries),
        _FLAGS[flags],
        int(version),
    )


@functools.cache
def specs() -> dict[str, MapSpec]:
    """Every map that is pinned, by name, and `rules`, the template of the maps inside `policies`."""
    return {row[0]: _spec(row) for row in _ROW.findall(HEADER.read_text())}


def pinned() -> list[MapSpec]:
    """The maps that have pins."""
    return [spec for name, spec in specs().items() if name != RULES]

"""The records of Python are the structs of C: compared with the BTF of the compiled programs."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from datapath import libbpf
from datapath.codec import Record
from datapath.maps.spec import pinned, records
from tests.bpf.sandbox import Node


@pytest.fixture(scope="module")
def structs(node: Node) -> dict[str, dict[str, Any]]:
    """Every struct in the programs' BTF, by name."""
    fd = node.program("pod_egress")
    btf = libbpf.program_info(fd).btf_id
    os.close(fd)
    dump = node.sandbox.run(node.namespace, "bpftool", "-j", "btf", "dump", "id", str(btf)).stdout
    types = json.loads(dump)["types"]
    by_id = {entry["id"]: entry for entry in types}
    found = {entry["name"]: entry for entry in types if entry["kind"] == "STRUCT"}
    return {name: {**entry, "types": by_id} for name, entry in found.items()}


def size_of(type_id: int, types: dict[int, dict[str, Any]]) -> int:
    entry = types[type_id]
    if "size" in entry:
        return int(entry["size"])
    if entry["kind"] == "ARRAY":
        return int(entry["nr_elems"]) * size_of(entry["type_id"], types)
    return size_of(entry["type_id"], types)


@pytest.mark.parametrize("name", sorted(records()))
def test_layout(name: str, structs: dict[str, dict[str, Any]]) -> None:
    record: type[Record] = records()[name]
    struct = structs[name]
    assert struct["size"] == record.size()
    fields = [
        (member["name"], member["bits_offset"] // 8, size_of(member["type_id"], struct["types"]))
        for member in struct["members"]
    ]
    if name == "addr":
        assert [(offset, size) for _, offset, size in fields] == [(0, 16)]
    else:
        assert fields == record.layout().fields


def test_the_kernels_maps_have_the_sizes_of_the_records(node: Node) -> None:
    for spec in pinned():
        fd = libbpf.open_pinned(node.pins / "maps" / spec.name)
        info = libbpf.map_info(fd)
        os.close(fd)
        assert (info.type, info.key_size, info.value_size, info.max_entries) == (
            spec.kind,
            spec.key_size,
            spec.value_size,
            spec.entries,
        )

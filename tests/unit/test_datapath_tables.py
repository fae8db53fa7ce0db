"""The datapath's records, numbers and reason codes, without a kernel."""

from __future__ import annotations

import enum
import ipaddress
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath import constants, reasons, tables
from datapath.codec import Record, address_bytes, address_from
from datapath.maps.spec import pinned, records, specs
from datapath.programs import PROGRAMS, SOURCES

HEADERS = Path(constants.__file__).parent / "include"


def test_every_record_is_written_and_read_back() -> None:
    for record in records().values():
        assert record.unpack(bytes(record.size())).pack() == bytes(record.size())


def test_padding_is_zero_whatever_was_read() -> None:
    raw = bytes([0xFF] * tables.ServiceKey.size())
    assert tables.ServiceKey.unpack(raw).pack().endswith(bytes(4))


def test_no_struct_has_a_hole_or_needs_padding_at_its_end() -> None:
    """As the compiler would place the fields, each at a multiple of its own size (addresses of 4)."""
    for record in records().values():
        widest = 1
        for field, offset, size in record.layout().fields:
            align = size if size in (1, 2, 4, 8) and not field.startswith("_") else 4 if size == 16 else 1
            assert offset % align == 0, f"{record.C_NAME}.{field}"
            widest = max(widest, align)
        assert record.size() % widest == 0, record.C_NAME


@given(st.integers(0, 2**32 - 1))
def test_ipv4_addresses_are_stored_mapped(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    raw = address_bytes(address)
    assert raw == ipaddress.IPv6Address(f"::ffff:{address}").packed
    assert address_from(raw) == address


@given(st.integers(0, 2**128 - 1).filter(lambda number: number >> 32 != 0xFFFF))
def test_ipv6_addresses_are_stored_as_they_are(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    assert address_from(address_bytes(address)) == address


@given(
    local=st.ip_addresses(),
    peer=st.ip_addresses(v=4),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    protocol=st.integers(0, 255),
    endpoint=st.integers(0, 65535),
)
def test_flow_keys_survive(
    local: ipaddress.IPv4Address,
    peer: ipaddress.IPv4Address,
    ports: tuple[int, int],
    protocol: int,
    endpoint: int,
) -> None:
    key = tables.FlowKey(
        local=local, peer=peer, local_port=ports[0], peer_port=ports[1], protocol=protocol, endpoint=endpoint
    )
    again = tables.FlowKey.unpack(key.pack())
    assert again.pack() == key.pack()
    assert key.pack()[32:34] == ports[0].to_bytes(2, "big")


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Exception, match="format requires"):
        tables.EndpointId(id=1 << 32).pack()


C_ENUMS: dict[str, type[enum.IntEnum | enum.IntFlag]] = {
    "identity": constants.Identity,
    "direction": constants.Direction,
    "verdict": constants.Verdict,
    "cache_flag": constants.CacheFlag,
    "node_flag": constants.NodeFlag,
    "policy_flag": constants.PolicyFlag,
    "conntrack_flag": constants.ConntrackFlag,
    "service_flag": constants.ServiceFlag,
    "scope": constants.Scope,
    "namespace_flag": constants.NamespaceFlag,
    "translation_kind": constants.TranslationKind,
    "place": constants.Place,
    "continuation": constants.Continuation,
    "config_flag": constants.ConfigFlag,
    "side": constants.Side,
    "stage": constants.Stage,
    "socket_flag": constants.SocketFlag,
    "meeting": constants.Meeting,
    "departure_step": constants.DepartureStep,
    "departure_obstacle": constants.Obstacle,
}


@pytest.mark.parametrize("name", C_ENUMS)
def test_numbers_are_those_of_c(name: str) -> None:
    text = (HEADERS / "constants.h").read_text()
    body = re.search(rf"enum {name} {{([^}}]*)}}", text)
    assert body
    pairs = re.findall(r"(\w+) = (\d+)", body.group(1))
    python = {
        label: number.value for label, number in C_ENUMS[name].__members__.items() if number.value or name
    }
    found = {
        next((label for label in python if constant.endswith("_" + label)), constant): int(number)
        for constant, number in pairs
    }
    found.pop("CONTINUE_SLOTS", None)
    assert found == {label: number for label, number in python.items() if label != "NONE"}


def test_single_numbers_are_those_of_c() -> None:
    text = (HEADERS / "constants.h").read_text()
    for label in (
        "MIN_CLUSTER_IDENTITY",
        "MAX_CLUSTER_IDENTITY",
        "LOCAL_IDENTITY",
        "METRIC_PLACES",
        "METRIC_REASONS",
        "PARTED_REASON_SHIFT",
    ):
        found = re.search(rf"#define {label} (\w+)", text)
        assert found and int(found.group(1), 0) == getattr(constants, label)


def test_reasons_are_unique_and_fit_their_table() -> None:
    rows = reasons.table()
    assert len(rows) > 30
    assert len({row.number for row in rows}) == len({row.name for row in rows}) == len(rows)
    assert all(0 < row.number < constants.METRIC_REASONS for row in rows)
    metrics = specs()["metrics"]
    assert metrics.entries == constants.METRIC_REASONS * constants.METRIC_PLACES


def test_every_reason_of_the_table_is_used_and_every_use_is_in_the_table() -> None:
    code = "".join(
        path.read_text() for path in [*SOURCES.glob("*.c"), *HEADERS.glob("*.h")] if path.name != "reasons.h"
    )
    used = set(re.findall(r"\bREASON_([A-Z_]+)\b", code)) - {"FIRST_DROP", "TABLE", "ENUM"}
    assert used == set(reasons.by_label())


def test_unknown_reasons_have_a_name_too() -> None:
    assert reasons.name_of(127) == "reason-127"
    assert reasons.name_of(72) == "policy-denied"


def test_every_map_has_records_of_its_keys_and_values() -> None:
    special = {"policies", "events", "continuations", "senders", "readers"}
    for spec in pinned():
        assert len(spec.name) < 16
        if spec.name not in special:
            assert spec.key is not None and spec.value is not None, spec.name
            assert issubclass(spec.key, Record)


def test_every_map_stands_in_the_header_comment() -> None:
    text = (HEADERS / "maps.h").read_text()
    for spec in pinned():
        assert re.search(rf"^ \*   {spec.name} +\|", text, re.MULTILINE), spec.name


def test_every_source_is_a_program_and_says_what_it_is() -> None:
    assert {path.stem for path in SOURCES.glob("*.c")} == {program.name for program in PROGRAMS}
    for program in PROGRAMS:
        text = program.source.read_text()
        assert text.startswith("/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */")
        for word in ("Hook ", "Contract ", "Cost ", "Kernel "):
            assert f" * {word}" in text, f"{program.name}: {word}"
        assert len(program.name) < 16


def test_every_header_has_a_licence_and_a_purpose() -> None:
    for path in HEADERS.glob("*.h"):
        lines = path.read_text().splitlines()
        assert lines[0] == "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */"
        assert lines[1].startswith("/*")

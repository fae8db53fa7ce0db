"""The loader's configuration file."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from datapath.loader.configuration import load
from datapath.loader.errors import Exit, LoaderError

GOOD = {
    "node_address": "192.0.2.1",
    "devices": ["eth0"],
    "pod_range": "10.244.0.0/16",
    "service_range": "10.96.0.0/12",
    "cgroup": "/sys/fs/cgroup",
}


def write(folder: Path, content: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(content))
    return path


def test_what_is_needed_is_enough(tmp_path: Path) -> None:
    configuration = load(write(tmp_path, GOOD))
    assert configuration.overlay_port == 8472
    table = configuration.table(
        namespace=7, overlay=3, underlay=2, router=ipaddress.IPv4Address("10.244.1.1")
    )
    assert table.service_mask == ipaddress.IPv6Address("ffff:ffff:ffff:ffff:ffff:ffff:fff0:0")
    assert table.pod_mask == ipaddress.IPv6Address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0")
    assert (table.overlay_ifindex, table.underlay_ifindex, table.host_namespace) == (3, 2, 7)


@pytest.mark.parametrize("missing", GOOD)
def test_what_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    content = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(LoaderError, match=f"{missing}: is missing"):
        load(write(tmp_path, content))


@pytest.mark.parametrize(
    "change",
    [
        {"node_address": "::1"},
        {"pod_range": "10.244.1.0/16"},
        {"devices": "eth0"},
        {"overlay_port": 70000},
        {"overlay_port": "8472"},
        {"events_per_second": -1},
        {"map_entries": {"nothing": 5}},
        {"map_entries": {"conntrack": 0}},
        {"more": 1},
    ],
)
def test_faults_are_named_and_have_their_exit_status(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(LoaderError, match=next(iter(change))) as caught:
        load(write(tmp_path, {**GOOD, **change}))
    assert caught.value.code == Exit.CONFIGURATION


@pytest.mark.parametrize("content", ["", "[]", "{", "7"])
def test_what_is_no_json_object(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(LoaderError):
        load(path)

"""The loader's configuration file: JSON, every fault listed at once."""

import ipaddress
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datapath import tables
from datapath.codec import Address
from datapath.constants import NUDGE_MARK, ConfigFlag
from datapath.loader.errors import Exit, LoaderError
from datapath.maps.spec import pinned

GATEWAY = ipaddress.IPv4Address("169.254.1.1")
LOOPBACK = ipaddress.IPv4Address("169.254.1.2")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is particular to a node.

    node_address: the address that other nodes tunnel to. devices: names of the node's own devices, the one
    with that address first. pod_range: of the whole cluster. map_entries: sizes that differ from
    `include/maps.h`. redirect: accelerate connections between pods of this node. redirect_budget: KiB of
    unread bytes in one direction. plain_ports: servers' ports that are never accelerated.
    """

    node_address: Address
    devices: tuple[str, ...]
    pod_range: ipaddress.IPv4Network
    service_range: ipaddress.IPv4Network
    cgroup: Path
    pins: Path = Path("/sys/fs/bpf/underpass")
    state: Path = Path("/run/underpass/datapath.json")
    overlay_device: str = "underpass0"
    overlay_port: int = 8472
    gateway: Address = GATEWAY
    loopback: Address = LOOPBACK
    events_per_second: int = 1000
    redirect: bool = True
    redirect_budget: int = 4096
    plain_ports: tuple[int, ...] = ()
    map_entries: dict[str, int] = field(default_factory=dict)

    def table(self, *, namespace: int, overlay: int, underlay: int, router: Address) -> tables.Config:
        """The value of the map `config`."""
        return tables.Config(
            node=self.node_address,
            router=router,
            gateway=self.gateway,
            loopback=self.loopback,
            pod_range=self.pod_range.network_address,
            pod_mask=_mask(self.pod_range),
            service_range=self.service_range.network_address,
            service_mask=_mask(self.service_range),
            host_namespace=namespace,
            overlay_ifindex=overlay,
            underlay_ifindex=underlay,
            overlay_port=self.overlay_port,
            events_per_second=self.events_per_second,
            nudge_mark=NUDGE_MARK,
            flags=ConfigFlag.REDIRECT if self.redirect else ConfigFlag.NONE,
            redirect_budget=self.redirect_budget,
        )


def _mask(network: ipaddress.IPv4Network) -> Address:
    """The mask on a 128-bit address: the v4-mapped prefix is exact."""
    return ipaddress.IPv6Address((1 << 128) - (1 << (32 - network.prefixlen)))


_REQUIRED = ("node_address", "devices", "pod_range", "service_range", "cgroup")


def load(path: Path) -> Configuration:
    """Read and check the file. LoaderError names every fault."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LoaderError(
            f"cannot read {path}: {error}", hint="the file must hold one JSON object", code=Exit.CONFIGURATION
        ) from error
    if not isinstance(raw, dict):
        raise LoaderError(f"{path}: not a JSON object", code=Exit.CONFIGURATION)
    faults: list[str] = [f"{name}: is missing" for name in _REQUIRED if name not in raw]
    values: dict[str, Any] = {}
    for name, value in raw.items():
        convert = _CONVERT.get(name)
        if convert is None:
            faults.append(f"{name}: is not known")
            continue
        try:
            values[name] = convert(value)
        except (TypeError, ValueError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise LoaderError(f"{path}: " + "; ".join(sorted(faults)), code=Exit.CONFIGURATION)
    return Configuration(**values)


def _devices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a list of device names, not empty")
    return tuple(value)


def _entries(value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError("must be an object of map name and number")
    names = {spec.name for spec in pinned()}
    for name, number in value.items():
        if name not in names or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number}: no such map, or no such size")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _ports(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(port, int) and 0 < port < 65536 for port in value):
        raise ValueError("must be a list of ports from 1 to 65535")
    return tuple(value)


def _integer(low: int, high: int) -> Any:
    def convert(value: Any) -> int:
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}")
        return value

    return convert


_CONVERT: dict[str, Any] = {
    "node_address": ipaddress.IPv4Address,
    "devices": _devices,
    "pod_range": ipaddress.IPv4Network,
    "service_range": ipaddress.IPv4Network,
    "cgroup": Path,
    "pins": Path,
    "state": Path,
    "overlay_device": str,
    "overlay_port": _integer(1, 65535),
    "gateway": ipaddress.IPv4Address,
    "loopback": ipaddress.IPv4Address,
    "events_per_second": _integer(0, 1_000_000),
    "map_entries": _entries,
    "redirect": _boolean,
    "redirect_budget": _integer(0, 65535),
    "plain_ports": _ports,
}

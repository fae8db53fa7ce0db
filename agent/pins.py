"""The pinned maps and programs of this node, as the agent's parts want them."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from datapath import attach, libbpf
from datapath.maps import Maps, open_maps
from datapath.maps.spec import pinned
from datapath.redirect_tables import PortKey


class Pins:
    """All that is pinned under one folder. FileNotFoundError: the loader has not been run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.maps: Maps = open_maps(folder)

    def attach(self, host_interface: str) -> None:
        """Put the programs on the host's end of a pod's cable."""
        attach.attach_pod(socket.if_nametoindex(host_interface), self._folder)

    def set_router(self, router: ipaddress.IPv4Address) -> None:
        """Tell the programs this node's address inside its pod range."""
        config = self.maps.read_config()
        if config is None:
            raise FileNotFoundError("the datapath's configuration is not written yet")
        if config.router != router:
            self.maps.write_config(dataclasses.replace(config, router=router))

    def plain_ports(self) -> frozenset[int]:
        """The servers' ports whose connections are never accelerated."""
        descriptor = libbpf.open_pinned(self._folder / "maps" / "plain_ports")
        try:
            return frozenset(PortKey.unpack(raw).port for raw in libbpf.map_keys(descriptor, PortKey.size()))
        finally:
            os.close(descriptor)

    def describe(self) -> list[dict[str, Any]]:
        """Each pinned map: name, type, how many entries it holds (where they can be counted) and may hold."""
        found = []
        for spec in pinned():
            descriptor = libbpf.open_pinned(self._folder / "maps" / spec.name)
            try:
                info = libbpf.map_info(descriptor)
                kind = libbpf.MapType(info.type)
                entries: int | str = "-"
                if kind in _COUNTABLE:
                    entries = sum(1 for _ in libbpf.map_keys(descriptor, info.key_size))
            finally:
                os.close(descriptor)
            found.append(
                {
                    "name": spec.name,
                    "type": kind.name.lower(),
                    "entries": entries,
                    "capacity": info.max_entries,
                }
            )
        return found


_COUNTABLE = (
    libbpf.MapType.HASH,
    libbpf.MapType.LRU_HASH,
    libbpf.MapType.LPM_TRIE,
    libbpf.MapType.HASH_OF_MAPS,
)

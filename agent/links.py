"""The cables of pods: veth pairs, addresses and routes, by netlink.

The pod's end lives in the pod's namespace; the host's end is where the programs are. A pod's address is
a /32 whose gateway is link-local and known by a fixed neighbour entry, so a pod has nothing to ask by
ARP and nobody to answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from datapath.links import ensure_pod_route

GATEWAY = "169.254.1.1"
HOST_PREFIX = "pod"
_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
_PERMANENT = 0x80
T = TypeVar("T")


class NetnsGoneError(Exception):
    """The sandbox's network namespace is not there (any more)."""


@dataclass(frozen=True, slots=True)
class Cable:
    """A pod's cable as the kernel has it. MACs are text, `cookie` is that of the pod's namespace."""

    host_interface: str
    ifindex: int
    mac: str
    host_mac: str
    mtu: int
    cookie: int


def host_interface_name(container: str, interface: str) -> str:
    """The name of the host's end: it follows from the attachment, so that it can be found after any crash."""
    digest = hashlib.sha256(f"{container}/{interface}".encode()).hexdigest()
    return HOST_PREFIX + digest[:12]


def mac_of(container: str, interface: str) -> str:
    """A locally administered MAC for the pod's end."""
    digest = hashlib.sha256(f"mac/{container}/{interface}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def host_mac_of(mac: str) -> str:
    """The MAC of the host's end, made of that of the pod's end.

    It has to be set: udev gives every virtual link whose MAC the kernel chose another one soon after,
    and pods would go on sending to the one of before.
    """
    return f"06{mac[2:]}"


def mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def in_netns(descriptor: int, work: Callable[[], T]) -> T:
    """Run `work` in the namespace of `descriptor`, on a thread of its own that ends with it."""
    answer: list[T] = []
    fault: list[BaseException] = []

    def body() -> None:
        try:
            _setns(descriptor)
            answer.append(work())
        except BaseException as caught:
            fault.append(caught)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if fault:
        raise fault[0]
    return answer[0]


_libc = ctypes.CDLL(None, use_errno=True)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def open_netns(path: str) -> Iterator[int]:
    """The namespace at `path` as a descriptor. Raises NetnsGoneError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as fault:
        raise NetnsGoneError(path) from fault
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def same_netns(path: str) -> bool:
    """Whether `path` is this process's own namespace."""
    return Path(path).stat().st_ino == Path("/proc/self/ns/net").stat().st_ino


def netns_cookie(descriptor: int) -> int:
    """The number by which the programs know a network namespace."""

    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            raw = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return int(struct.unpack("=Q", raw)[0])

    return in_netns(descriptor, ask)


class Links:
    """Makes, finds and removes cables. Safe to use from many threads: each call opens its own socket."""

    def __init__(self, mtu: Callable[[], int]) -> None:
        """`mtu` tells the MTU for pods: the underlay's less the overlay's header."""
        self._mtu = mtu

    def create(self, netns: str, interface: str, host_interface: str, mac: str) -> Cable:
        """Make the pair: the host's end down, the pod's end in its namespace, still without address.

        What an earlier attempt of the same attachment left is removed first. Raises NetnsGoneError.
        """
        mtu = self._mtu()
        with open_netns(netns) as descriptor, IPRoute() as host:
            self._remove(host, host_interface)
            try:
                host.link(
                    "add",
                    ifname=host_interface,
                    kind="veth",
                    address=host_mac_of(mac),
                    mtu=mtu,
                    peer={"ifname": interface, "net_ns_fd": descriptor, "address": mac, "mtu": mtu},
                )
            except NetlinkError as fault:
                raise OSError(fault.code, f"veth {host_interface}: {fault}") from fault
            cable = self._describe(host, host_interface, mac, netns_cookie(descriptor))
            assert cable
            return cable

    def configure(self, netns: str, interface: str, address: str, host_mac: str) -> None:
        """Give the pod's end its address and routes and bring it up. Raises NetnsGoneError."""

        def inside() -> None:
            with IPRoute() as pod:
                index = pod.link_lookup(ifname=interface)[0]
                pod.link("set", index=1, state="up")
                pod.addr("replace", index=index, address=address, prefixlen=32)
                pod.link("set", index=index, state="up")
                pod.neigh("replace", dst=GATEWAY, lladdr=host_mac, ifindex=index, state=_PERMANENT)
                pod.route("replace", dst=f"{GATEWAY}/32", oif=index, scope=253)
                pod.route("replace", dst="0.0.0.0/0", gateway=GATEWAY, oif=index)

        with open_netns(netns) as descriptor:
            in_netns(descriptor, inside)

    def connect(self, cable: Cable, address: str, source: str) -> None:
        """Bring the host's end up and let the host reach the pod; `source` is the host's own address."""
        Path(f"/proc/sys/net/ipv4/conf/{cable.host_interface}/rp_filter").write_text("0")
        with IPRoute() as host:
            host.link("set", index=cable.ifindex, state="up")
        ensure_pod_route(
            cable.ifindex, ipaddress.IPv4Address(address), ipaddress.IPv4Address(source), mac_bytes(cable.mac)
        )

    def find(self, host_interface: str, mac: str, cookie: int = 0) -> Cable | None:
        """The cable if its host's end is there."""
        with IPRoute() as host:
            return self._describe(host, host_interface, mac, cookie)

    def all(self) -> set[str]:
        """The names of all links on the host that are ends of pods' cables."""
        with IPRoute() as host:
            names = {link.get_attr("IFLA_IFNAME") for link in host.get_links(kind="veth")}
        return {name for name in names if name.startswith(HOST_PREFIX)}

    def remove(self, host_interface: str) -> None:
        """Remove the cable; none there is as good."""
        with IPRoute() as host:
            self._remove(host, host_interface)

    def inspect(self, netns: str, interface: str) -> tuple[str, set[str], set[str]]:
        """MAC, addresses and destinations of routes of the pod's end. LookupError if it is not there."""

        def inside() -> tuple[str, set[str], set[str]]:
            with IPRoute() as pod:
                found = pod.link_lookup(ifname=interface)
                if not found:
                    raise LookupError(interface)
                link = pod.get_links(found[0])[0]
                addresses = {a.get_attr("IFA_ADDRESS") for a in pod.get_addr(index=found[0])}
                routes = {
                    f"{r.get_attr('RTA_DST') or 'default'}/{r['dst_len']}"
                    for r in pod.get_routes(family=socket.AF_INET, oif=found[0])
                }
                return str(link.get_attr("IFLA_ADDRESS")), addresses, routes

        with open_netns(netns) as descriptor:
            return in_netns(descriptor, inside)

    def _describe(self, host: Any, name: str, mac: str, cookie: int) -> Cable | None:
        found = host.link_lookup(ifname=name)
        if not found:
            return None
        link = host.get_links(found[0])[0]
        return Cable(
            host_interface=name,
            ifindex=found[0],
            mac=mac,
            host_mac=link.get_attr("IFLA_ADDRESS"),
            mtu=link.get_attr("IFLA_MTU"),
            cookie=cookie,
        )

    def _remove(self, host: Any, name: str) -> None:
        for index in host.link_lookup(ifname=name):
            try:
                host.link("del", index=index)
            except NetlinkError as fault:
                if fault.code != errno.ENODEV:
                    raise OSError(fault.code, f"link {name}: {fault}") from fault

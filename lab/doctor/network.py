"""Probes of the lab's network: its real topology on a small scale, with TCP over it in each direction.

Everything is made in network namespaces that only descriptors hold; see `scratch`. The one link on the
host begins with `up`, as those of every lab do, so that a firewall rule that lets labs pass is seen to.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lab import emulation
from lab.doctor import firewall
from lab.doctor.finding import Probe, Seen, fail, ok, warn
from lab.doctor.scratch import inside, namespace
from lab.render import Rendered
from lab.retry import until

ALIAS = "underpass-doctor"

CONNECT_SECONDS = 3.0  # the kernel repeats a lost packet after 1 s
TURN_SECONDS = 10.0
UP_SECONDS = 5.0

VXLAN_FIX = "use a kernel with CONFIG_VXLAN; where it is a module: modprobe vxlan"
LINK_FIX = (
    "use a kernel with CONFIG_VETH and CONFIG_BRIDGE, as root with CAP_NET_ADMIN; "
    "where they are modules: modprobe -a veth bridge"
)


def _patience(seconds: float) -> float:
    """`seconds` as long as this machine takes for them."""
    return seconds * emulation.slowness()


def probes(lab: Rendered) -> list[Probe]:
    return [
        Probe("network", "Packets between host and nodes", lambda: packets(lab)),
        Probe("vxlan", "VXLAN devices", vxlan),
        Probe("socket-destroy", "Closing sockets of others (INET_DIAG_DESTROY)", destroy),
    ]


@dataclass(frozen=True)
class Addresses:
    """The probe's addresses: the last three of the lab's own range, which no node can have."""

    host: str
    nodes: tuple[str, str]

    @classmethod
    def of(cls, lab: Rendered) -> Addresses:
        last = int(ipaddress.IPv4Network(lab.nodes_range).broadcast_address)
        host, one, other = (str(ipaddress.IPv4Address(last - step)) for step in (1, 2, 3))
        return cls(host, (one, other))


@dataclass(frozen=True)
class Cabled:
    """The probe's topology, up: the two nodes' namespaces and the host's link."""

    nodes: tuple[int, int]
    link: str


def packets(lab: Rendered) -> Seen:
    """Cable host, switch and two nodes as a lab's are; connect by TCP both ways."""
    addresses = Addresses.of(lab)
    with _turn():
        try:
            with _topology(addresses) as cabled:
                return _judge(_connect_all(addresses, cabled), addresses, cabled.link)
        except NetlinkError as fault:
            reason = os.strerror(fault.code) if fault.code else str(fault)
            return fail(reason, "the kernel refused a veth, a bridge or a route for the probe", LINK_FIX)


@contextmanager
def _turn() -> Iterator[None]:
    """One doctor at a time in this network namespace; the kernel ends a turn with its process."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as turn:

        def free() -> bool:
            try:
                turn.bind(f"\0{ALIAS}")
            except OSError as fault:
                if fault.errno != errno.EADDRINUSE:
                    raise
                return False
            return True

        if not until(free, _patience(TURN_SECONDS)):
            raise TimeoutError(
                f"another doctor has been probing the network for {_patience(TURN_SECONDS):g} s"
            )
        yield


@contextmanager
def _topology(addresses: Addresses) -> Iterator[Cabled]:
    link = f"updoc{os.getpid():x}"
    with ExitStack() as stack:
        switch = stack.enter_context(namespace())
        nodes = (stack.enter_context(namespace()), stack.enter_context(namespace()))
        stack.callback(_remove, link)
        with IPRoute() as route:
            # A MAC that the kernel chooses, udev would change while the probe's packets are under way.
            mac = "06:" + ":".join(f"{byte:02x}" for byte in (0, *os.getpid().to_bytes(4, "big")))
            peer = {"ifname": "uplink", "net_ns_fd": switch}
            route.link("add", ifname=link, kind="veth", address=mac, peer=peer)
            index = _index(route, link)
            route.link("set", index=index, ifalias=ALIAS, state="up")
            route.addr("add", index=index, address=addresses.host, prefixlen=32)
            for address in addresses.nodes:
                route.route("add", dst=f"{address}/32", oif=index, prefsrc=addresses.host, scope="link")
        inside(switch, lambda: _wire(nodes))
        for number, node in enumerate(nodes):
            others = [addresses.host, addresses.nodes[1 - number]]
            inside(node, lambda mine=addresses.nodes[number], others=others: _settle(mine, others))  # type: ignore[misc]
        of_switch = [(switch, name) for name in ("uplink", "node0", "node1", "bridge")]
        for there, name in ((None, link), *of_switch, *((node, "eth0") for node in nodes)):
            if not inside(there, lambda name=name: until(lambda: _is_up(name), _patience(UP_SECONDS))):  # type: ignore[misc]
                raise TimeoutError(
                    f"the probe's link {name} did not come up within {_patience(UP_SECONDS):g} s"
                )
        yield Cabled(nodes, link)


def _is_up(name: str) -> bool:
    """Whether the link carries packets: the kernel may say so up to a second after it was set up."""
    with IPRoute() as route:
        return bool(route.link("get", index=_index(route, name))[0].get_attr("IFLA_OPERSTATE") == "UP")


def _remove(link: str) -> None:
    """Take the host's link off at once; a namespace that goes takes it off a little later."""
    with IPRoute() as route:
        for index in route.link_lookup(ifname=link):
            route.link("del", index=index)


def _wire(nodes: tuple[int, int]) -> None:
    """In the switch: a bridge, and on it the uplink and a cable to each node."""
    with IPRoute() as route:
        route.link("add", ifname="bridge", kind="bridge", br_stp_state=0)
        bridge = _index(route, "bridge")
        ports = ["uplink"]
        for number, node in enumerate(nodes):
            name = f"node{number}"
            route.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": node})
            ports.append(name)
        for name in ports:
            route.link("set", index=_index(route, name), master=bridge, state="up")
        route.link("set", index=bridge, state="up")


def _settle(address: str, others: list[str]) -> None:
    """In a node: its address, and a route to each of the others."""
    with IPRoute() as route:
        route.link("set", index=_index(route, "lo"), state="up")
        index = _index(route, "eth0")
        route.link("set", index=index, state="up")
        route.addr("add", index=index, address=address, prefixlen=32)
        for other in others:
            route.route("add", dst=f"{other}/32", oif=index, prefsrc=address, scope="link")


def _index(route: Any, name: str) -> int:
    return int(route.link_lookup(ifname=name)[0])


@dataclass(frozen=True)
class Tried:
    """A connection that was tried: from and to (`host`, `node`), and why it failed, if it did."""

    source: str
    target: str
    fault: str | None

    def __str__(self) -> str:
        return f"{self.source} to {self.target}: {self.fault or 'passes'}"


def _connect_all(addresses: Addresses, cabled: Cabled) -> list[Tried]:
    """All directions at once, so that drops cost one time-out together."""
    one, other = cabled.nodes
    at_one, at_other = addresses.nodes
    ways = [
        ("host", "node", None, one, at_one),
        ("node", "node", one, other, at_other),
        ("node", "host", other, None, addresses.host),
    ]
    with ThreadPoolExecutor(len(ways)) as pool:
        return list(pool.map(lambda way: _connect(*way), ways))


def _connect(source: str, target: str, there: int | None, here: int | None, address: str) -> Tried:
    """Listen in namespace `here`, connect from `there`; a byte must come through."""

    def listen() -> socket.socket:
        return socket.create_server((address, 0))

    def talk(port: int) -> bytes:
        with closing(socket.create_connection((address, port), timeout=_patience(CONNECT_SECONDS))) as client:
            return client.recv(1)

    with closing(inside(here, listen)) as server:
        server.settimeout(_patience(CONNECT_SECONDS))
        port = server.getsockname()[1]
        with ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(_greet, server)
            try:
                came = inside(there, lambda: talk(port))
            except TimeoutError:
                return Tried(source, target, f"no answer within {_patience(CONNECT_SECONDS):g} s")
            except OSError as fault:
                return Tried(source, target, fault.strerror or str(fault))
            finally:
                accepted.result()
    return Tried(source, target, None if came == b"u" else "the connection carried nothing")


def _greet(server: socket.socket) -> None:
    try:
        peer, _ = server.accept()
    except TimeoutError:
        return
    with closing(peer):
        peer.sendall(b"u")


def _judge(tried: list[Tried], addresses: Addresses, link: str) -> Seen:
    evidence = "; ".join(map(str, tried))
    failed = {(one.source, one.target) for one in tried if one.fault}
    if not failed:
        return ok(evidence)
    cause, fix = explain(failed, addresses, link)
    if failed == {("node", "host")}:
        return warn(evidence, f"{cause}; the lab runs, but nothing in it reaches servers on this host", fix)
    return fail(evidence, cause, fix)


def explain(failed: set[tuple[str, str]], addresses: Addresses, link: str) -> tuple[str, str]:
    """Cause and fix of lost packets, by the host's routes and its firewall rules."""
    detour = _detour(addresses.nodes[0], link)
    if detour:
        return (
            f"the host sends packets for the nodes out by {detour} instead of the lab's own link",
            "a VPN or a policy route takes them: `ip rule` and `ip route show table all` show which; "
            "exclude the lab's range from it, or set network.nodes in the lab file",
        )
    hooks = {"input", "output", "prerouting", "postrouting", "ingress", "egress"}
    if ("node", "node") in failed:
        hooks.add("forward")
    found = firewall.suspects(hooks)
    if found:
        return (
            "a firewall of this host drops packets between it and the nodes; "
            f"it could be {firewall.told(found)}",
            "let the lab's links pass, whose names begin with `up`: "
            "iptables -I INPUT -i up+ -j ACCEPT; iptables -I OUTPUT -o up+ -j ACCEPT; or in nft: "
            'iifname "up*" accept in the input chain, oifname "up*" accept in the output chain',
        )
    return (
        "packets between the host and the nodes get lost, and neither a route nor a firewall rule tells why",
        "look for a security agent, a cloud network plugin or BPF programs on the host that drop packets: "
        "`bpftool net`, `tc filter`, `dmesg`",
    )


def _detour(address: str, link: str) -> str | None:
    """The link by which the host would reach `address`, if it is not `link`."""
    with IPRoute() as route:
        try:
            way = route.route("get", dst=address)[0]
        except NetlinkError as fault:
            return f"nothing ({os.strerror(fault.code)})"
        name = route.get_links(way.get_attr("RTA_OIF"))[0].get_attr("IFLA_IFNAME")
    return None if name == link else str(name)


def vxlan() -> Seen:
    """Make a VXLAN device that takes its peers from BPF, as the datapath's overlay does."""

    def make() -> None:
        with IPRoute() as route:
            route.link("add", ifname="overlay", kind="vxlan", vxlan_collect_metadata=True, vxlan_port=8472)
            route.link("set", index=_index(route, "overlay"), state="up")

    with namespace() as here:
        try:
            inside(here, make)
        except NetlinkError as fault:
            return fail(
                os.strerror(fault.code),
                "the kernel refused a VXLAN device, over which nodes talk",
                VXLAN_FIX,
            )
    return ok("made and removed")


def destroy() -> Seen:
    """Close an established connection from outside, as the datapath does when policy forbids it."""

    def try_it() -> str | None:
        with IPRoute() as route:
            route.link("set", index=_index(route, "lo"), state="up")
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            closing(
                socket.create_connection(server.getsockname(), timeout=_patience(CONNECT_SECONDS))
            ) as client,
        ):
            fault = _destroy(client)
            if fault:
                return os.strerror(fault)
            try:
                client.recv(1)
            except ConnectionError:
                return None
            except TimeoutError:
                return "the connection stays open"
            return "the connection ended without an error"

    with namespace() as here:
        refused = inside(here, try_it)
    if refused:
        return warn(
            refused,
            "this kernel cannot close connections of others, so that one which policy forbids "
            "ends only when its next packet is dropped",
            "use a kernel with CONFIG_INET_DIAG_DESTROY, as Debian 13's own",
        )
    return ok("an established connection was closed")


def _destroy(victim: socket.socket) -> int:
    """SOCK_DESTROY of the connected IPv4 socket; the kernel's errno, 0 if it did."""
    netlink_sock_diag, sock_destroy, request_ack, any_cookie = 4, 21, 0x5, 0xFFFFFFFF
    (mine, my_port), (its, its_port) = victim.getsockname(), victim.getpeername()
    what = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
    what += struct.pack("!HH", my_port, its_port)
    what += socket.inet_aton(mine).ljust(16, b"\0") + socket.inet_aton(its).ljust(16, b"\0")
    what += struct.pack("=III", 0, any_cookie, any_cookie)
    header = struct.pack("=IHHII", 16 + len(what), sock_destroy, request_ack, 1, 0)
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_sock_diag)) as diag:
        diag.settimeout(_patience(CONNECT_SECONDS))
        diag.send(header + what)
        answer = diag.recv(4096)
    return -int(struct.unpack_from("=i", answer, 16)[0])

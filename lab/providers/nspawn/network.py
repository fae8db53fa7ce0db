"""The lab's cables: a switch namespace with a bridge, an uplink to the host, a namespace per node.

    host                 switch namespace                     node's namespace
    <lab.uplink> ======= uplink ─┐
     gateway/prefix              ├─ <lab.bridge>
                         <node.host_link> ─┘ ================ eth0  address/prefix

The bridge sits in a namespace of its own so that frames between nodes meet no firewall rule of the
host: where br_netfilter is on, the host's iptables would see, and Docker's FORWARD policy drop, them.
The host's own forwarding settings are neither needed nor touched.

Every function asks what is there and mends what is missing; each change counts 1.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from lab.errors import ExitCode, die
from lab.providers.nspawn import mounts
from lab.render import Rendered, RenderedNode

T = TypeVar("T")

NAMESPACES = Path("/run/netns")
UPLINK_IN_SWITCH = "uplink"
LINK_IN_NODE = "eth0"

_CLONE_NEWNET = 0x40000000


def inside(namespace: str | None, work: Callable[[Any], T]) -> T:
    """Call `work` with an open IPRoute in `namespace` (None for the host's own) and return its answer.

    A thread of its own enters the namespace: entering is per thread, so that nothing forks and other
    threads stay where they are.
    """
    answer: list[T] = []
    faults: list[BaseException] = []

    def body() -> None:
        try:
            if namespace is not None:
                netns.setns(str(NAMESPACES / namespace), flags=0, fork=False)
                _refuse_the_hosts_own(namespace)
            with IPRoute() as route:
                answer.append(work(route))
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=body, name=f"netns {namespace or 'host'}")
    thread.start()
    thread.join()
    if faults:
        if isinstance(faults[0], NetlinkError):
            die(
                f"the kernel refused a network change in {namespace or 'the host'}: {faults[0]}",
                hint="`lab doctor` probes links, bridges and overlapping subnets",
                code=ExitCode.NODE,
            )
        raise faults[0]
    return answer[0]


def _refuse_the_hosts_own(namespace: str) -> None:
    """Make sure that a name does not stand for the host's namespace, whose links are nobody's to change."""
    if Path("/proc/thread-self/ns/net").samefile("/proc/self/ns/net"):
        die(
            f"the network namespace {namespace} is the host's own",
            hint=f"`ip netns del {namespace}` takes the name off; then try again",
            code=ExitCode.NODE,
        )


class Network:
    """The network of one lab."""

    def __init__(self, lab: Rendered) -> None:
        self.lab = lab
        self._one_at_a_time = threading.Lock()

    def ensure_switch(self) -> int:
        """The switch with its bridge, joined to the host, which has the gateway's address."""
        with self._one_at_a_time:  # nodes that start side by side all need it
            return self._ensure_switch()

    def _ensure_switch(self) -> int:
        lab = self.lab
        changed = _ensure_namespace(lab.switch)
        in_switch = inside(lab.switch, lambda route: _index(route, UPLINK_IN_SWITCH))
        changed += inside(None, lambda route: self._ensure_uplink(route, whole=in_switch is not None))

        def wire(route: Any) -> int:
            done = _up(route, "lo")
            if _index(route, lab.bridge) is None:
                route.link("add", ifname=lab.bridge, kind="bridge", br_stp_state=0)
                done += 1
            done += _up(route, lab.bridge)
            return done + _plug(route, UPLINK_IN_SWITCH, lab.bridge)

        return changed + inside(lab.switch, wire)

    def _ensure_uplink(self, route: Any, *, whole: bool) -> int:
        lab = self.lab
        changed = 0
        if _index(route, lab.uplink) is not None and not whole:
            route.link("del", index=_index(route, lab.uplink))  # its other end is elsewhere
        if _index(route, lab.uplink) is None:
            peer = {"ifname": UPLINK_IN_SWITCH}
            _cable(route, lab.uplink, peer, lab.switch, address=_uplink_mac(lab))
            changed += 1
        changed += _address(route, lab.uplink, lab.gateway, lab.prefix_length)
        return changed + _up(route, lab.uplink)

    def ensure_node(self, node: RenderedNode, pid: int | None = None) -> int:
        """The node's namespace, cable, address and route.

        `pid` is a process of the node, if it runs: then the namespace is the one it lives in, and
        only its name can be missing.
        """
        lab = self.lab
        changed = _ensure_namespace(node.machine, pid)
        ends = (
            inside(lab.switch, lambda route: _ends(route, node.host_link)),
            inside(node.machine, lambda route: _ends(route, LINK_IN_NODE)),
        )
        if ends[0] is None or ends[1] is None or ends[0] != ends[1][::-1]:
            inside(lab.switch, lambda route: _unplug(route, node.host_link))
            inside(node.machine, lambda route: _unplug(route, LINK_IN_NODE))
            peer = {"ifname": LINK_IN_NODE, "address": node.mac}
            inside(lab.switch, lambda route: _cable(route, node.host_link, peer, node.machine))
            changed += 1
        changed += inside(lab.switch, lambda route: _plug(route, node.host_link, lab.bridge))

        def configure(route: Any) -> int:
            done = _up(route, "lo")
            done += _address(route, LINK_IN_NODE, node.address, lab.prefix_length)
            done += _up(route, LINK_IN_NODE)
            return done + _default_route(route, lab.gateway)

        return changed + inside(node.machine, configure)

    def remove_node(self, node: RenderedNode) -> int:
        """Pull the node's cable and drop its namespace, with all that was made in it."""
        changed = 0
        if _is_namespace(NAMESPACES / self.lab.switch):
            changed += inside(self.lab.switch, lambda route: _unplug(route, node.host_link))
        return changed + _remove_namespace(node.machine)

    def remove_switch(self) -> int:
        """Drop the switch and the host's end of its cable."""
        changed = inside(None, lambda route: _unplug(route, self.lab.uplink))
        return changed + _remove_namespace(self.lab.switch)

    def found(self) -> list[str]:
        """What of the lab's network is there, one line each."""
        lines = []
        if inside(None, lambda route: _index(route, self.lab.uplink)) is not None:
            lines.append(f"link {self.lab.uplink}")
        for name in (self.lab.switch, *(node.machine for node in self.lab.nodes)):
            if (NAMESPACES / name).exists():
                lines.append(f"network namespace {name}")
        return lines


def _ensure_namespace(name: str, pid: int | None = None) -> int:
    """Make a named namespace, or give the one that process `pid` lives in its name back."""
    path = NAMESPACES / name
    with _names():
        if pid is not None and not _has_left_ours(pid):
            pid = None  # it is not in the node's yet
        if _is_namespace(path) and (pid is None or path.samefile(f"/proc/{pid}/ns/net")):
            return 0
        if path.exists():
            _drop(path)  # a file without a namespace (its maker was killed), or another namespace
        if pid is not None:
            netns.attach(name, pid)
        else:
            _make(name)
    return 1


def _has_left_ours(pid: int) -> bool:
    """Whether a process lives, and in another network namespace than we."""
    try:
        return not Path(f"/proc/{pid}/ns/net").samefile("/proc/self/ns/net")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _make(name: str) -> None:
    """Make the namespace in a thread: `unshare` moves the thread that calls it and no other."""
    faults: list[BaseException] = []

    def body() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), name)
            netns.attach(name, "thread-self")
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=body, name=f"make netns {name}")
    thread.start()
    thread.join()
    if faults:
        die(f"cannot make network namespace {name}: {faults[0]}", code=ExitCode.NODE)


def _remove_namespace(name: str) -> int:
    path = NAMESPACES / name
    if not path.exists():
        return 0
    with _names():
        _drop(path)
        if not any(NAMESPACES.iterdir()):  # undo what making the first name did to the host
            for point in mounts.below(NAMESPACES):
                mounts.detach(point)
            NAMESPACES.rmdir()
    return 1


def _drop(path: Path) -> None:
    while _is_namespace(path):
        mounts.detach(path)
    path.unlink(missing_ok=True)


def _is_namespace(path: Path) -> bool:
    """Whether a namespace is mounted on the name, and not a mere file."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


@contextmanager
def _names() -> Iterator[None]:
    """Hold the lock on the directory of names that `ip netns` takes too."""
    while True:
        NAMESPACES.mkdir(mode=0o755, exist_ok=True)
        try:
            handle = os.open(NAMESPACES, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # removed with its last name by another lab, just now
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _same_file(NAMESPACES, handle):
                yield
                return
        finally:
            os.close(handle)


def _same_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _index(route: Any, name: str) -> int | None:
    found = route.link_lookup(ifname=name)
    return found[0] if found else None


def _link(route: Any, name: str) -> Any:
    return route.link("get", ifname=name)[0]


def _ends(route: Any, name: str) -> tuple[int, int] | None:
    """Index of a cable's near end and of its far end; None if there is no such cable."""
    if _index(route, name) is None:
        return None
    link = _link(route, name)
    return link["index"], link.get_attr("IFLA_LINK") or 0


def _uplink_mac(lab: Rendered) -> str:
    """The MAC of the host's end of the uplink: the nodes' have the same bytes and a number from 1 on.

    It has to be set: the host's systemd-udevd gives a link whose MAC the kernel chose another one soon after,
    and nodes that have asked for the gateway meanwhile go on sending to the one of before.
    """
    return "02:" + ":".join(lab.tag[place : place + 2] for place in (0, 2, 4, 6)) + ":00"


def _cable(route: Any, name: str, peer: dict[str, Any], namespace: str, **own: Any) -> None:
    """Make a veth `name`, with the attributes `own`, whose other end `peer` is born in `namespace`."""
    handle = os.open(NAMESPACES / namespace, os.O_RDONLY)
    try:
        route.link("add", ifname=name, kind="veth", peer={**peer, "net_ns_fd": handle}, **own)
    finally:
        os.close(handle)


def _unplug(route: Any, name: str) -> int:
    index = _index(route, name)
    if index is None:
        return 0
    route.link("del", index=index)
    return 1


def _plug(route: Any, name: str, bridge: str) -> int:
    """Put a link on the bridge and set it up."""
    changed = 0
    if _link(route, name).get_attr("IFLA_MASTER") != _index(route, bridge):
        route.link("set", index=_index(route, name), master=_index(route, bridge))
        changed += 1
    return changed + _up(route, name)


def _up(route: Any, name: str) -> int:
    link = _link(route, name)
    if link["flags"] & 1:  # IFF_UP
        return 0
    route.link("set", index=link["index"], state="up")
    return 1


def _address(route: Any, name: str, address: str, prefix: int) -> int:
    """Give a link its address; other addresses on it stay."""
    index = _index(route, name)
    there = {
        (found.get_attr("IFA_ADDRESS"), found["prefixlen"])
        for found in route.get_addr(family=socket.AF_INET, index=index)
    }
    if (address, prefix) in there:
        return 0
    route.addr("add", index=index, address=address, prefixlen=prefix)
    return 1


def _default_route(route: Any, gateway: str) -> int:
    for found in route.get_default_routes(family=socket.AF_INET):
        if found.get_attr("RTA_GATEWAY") == gateway:
            return 0
    route.route("replace", dst="default", gateway=gateway)
    return 1

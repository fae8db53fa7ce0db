"""Devices, routes and rules of the node that the programs rely on. By netlink (pyroute2) and nft.

- the overlay device: VXLAN with collect metadata (one for all nodes; the programs give each packet its node
and
  identity), without ARP: its neighbours are addressed by the tunnel header, not by MAC
- the router address: this node's address inside its pod range, on the overlay device, source of what the
node's own
  processes send to pods of other nodes, so that the answer finds its way back through the overlay
- masquerade: pods' packets to outside leave with the node's address. nftables does this and not BPF: the
kernel's
  NAT handles ICMP errors, helpers and port exhaustion, and it is off the path of all traffic inside the
  cluster
"""

import ipaddress
import os
import socket
import subprocess
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from datapath.codec import Address

VXLAN_OVERHEAD = 50
SO_NETNS_COOKIE = 71
_EEXIST = 17
_IFF_NOARP = 0x80
_SYSCTL = Path("/proc/sys/net/ipv4")
_TABLE = "underpass"


def ifindex(name: str) -> int:
    """Index of a device. OSError when there is none."""
    return socket.if_nametoindex(name)


def namespace_cookie() -> int:
    """Cookie of the network namespace of this process (kernel 5.14)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


def ensure_overlay(name: str, port: int, underlay: str) -> int:
    """Make the overlay device if it is not there, and bring it up; returns its index. MTU: the underlay's
    less 50.
    """
    with IPRoute() as netlink:
        mtu = netlink.get_links(ifindex(underlay))[0].get_attr("IFLA_MTU") - VXLAN_OVERHEAD
        found = netlink.link_lookup(ifname=name)
        if not found:
            netlink.link(
                "add",
                ifname=name,
                kind="vxlan",
                vxlan_collect_metadata=True,
                vxlan_port=port,
                vxlan_learning=False,
            )
            found = netlink.link_lookup(ifname=name)
        index = int(found[0])
        present = netlink.get_links(index)[0].get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "IFLA_VXLAN_PORT")
        if present != port:
            raise OSError(f"{name} is there already, with port {present} and not {port}: run `down` first")
        netlink.link("set", index=index, mtu=mtu, flags=_IFF_NOARP, change=_IFF_NOARP)
        netlink.link("set", index=index, state="up")
    return index


def remove_overlay(name: str) -> bool:
    """Delete the overlay device; False when there was none."""
    with IPRoute() as netlink:
        found = netlink.link_lookup(ifname=name)
        if not found:
            return False
        netlink.link("del", index=found[0])
    return True


def ensure_router(overlay: int, router: Address, pod_range: ipaddress.IPv4Network) -> None:
    """Give the node its router address, and send what it has for other nodes' pods to the overlay.

    pod_range: of the whole cluster. Pods of this node have routes of their own, which are longer.
    """
    with IPRoute() as netlink:
        try:
            netlink.addr("add", index=overlay, address=str(router), prefixlen=32)
        except NetlinkError as error:
            if error.code != _EEXIST:
                raise
        netlink.route("replace", dst=str(pod_range), oif=overlay, scope="link", prefsrc=str(router))


def ensure_pod_route(index: int, pod: Address, source: Address, mac: bytes) -> None:
    """Host route and permanent neighbour of a pod of this node: the host never asks by ARP.

    source: this node's address, which the pod sees when the node's own processes call it. mac: of the pod's
    end.
    """
    text = ":".join(f"{byte:02x}" for byte in mac)
    with IPRoute() as netlink:
        netlink.neigh("replace", dst=str(pod), lladdr=text, ifindex=index, state=0x80)
        netlink.route("replace", dst=f"{pod}/32", oif=index, scope="link", prefsrc=str(source))


def set_down(index: int) -> None:
    """Take a link down."""
    with IPRoute() as netlink:
        netlink.link("set", index=index, state="down")


def link_indexes() -> list[int]:
    """Indexes of every device in this namespace."""
    return [index for index, _ in socket.if_nameindex()]


def ensure_forwarding() -> None:
    """The node routes between its pods and the outside."""
    (_SYSCTL / "ip_forward").write_text("1\n")


def ensure_masquerade(pod_range: ipaddress.IPv4Network, overlay: str, overlay_port: int) -> None:
    """One nft table of ours, replaced in one step.

    A NAT rule has the kernel track every connection of the node. The overlay's packets are taken out of that:
    nobody translates them, and looking them up at both nodes was a part of each packet's way across.
    """
    rules = f"""
add table ip {_TABLE}
delete table ip {_TABLE}
table ip {_TABLE} {{
    chain untracked_in {{
        type filter hook prerouting priority raw; policy accept;
        udp dport {overlay_port} notrack
    }}
    chain untracked_out {{
        type filter hook output priority raw; policy accept;
        udp dport {overlay_port} notrack
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {pod_range} ip daddr != {pod_range} oifname != "{overlay}" fib daddr type != local masquerade
    }}
}}
"""
    _nft(rules)


def remove_masquerade() -> None:
    """Delete our nft table, if it is there."""
    _nft(f"add table ip {_TABLE}\ndelete table ip {_TABLE}\n")


def _nft(rules: str) -> None:
    done = subprocess.run(
        ["nft", "-f", "-"],
        input=rules,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        raise OSError(f"nft: {done.stderr.strip()}")

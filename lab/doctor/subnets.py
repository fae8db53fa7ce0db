"""The probe of address ranges: the lab's against the host's routes, other labs', and each other."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import combinations

from pyroute2 import IPRoute

from lab import paths
from lab import render as rendering
from lab.doctor.finding import Probe, Seen, fail, ok, warn
from lab.render import Rendered

FIX = "choose another range in the lab file: network.{field}"


@dataclass(frozen=True)
class Route:
    """A route of the host: where to, and out by which link."""

    to: IPv4Network
    link: str


def probes(lab: Rendered) -> list[Probe]:
    return [Probe("subnets", "Address ranges", lambda: subnets(lab), root=False)]


def subnets(lab: Rendered) -> Seen:
    others = [
        other
        for home in (paths.state() / "labs").glob("*/lab.json")
        if (other := rendering.read(home.parent.name)) is not None and other.id != lab.id
    ]
    return judge(lab, host_routes(), others)


def host_routes() -> list[Route]:
    """The host's IPv4 routes in all tables but the default ones."""
    with IPRoute() as route:
        listed = [
            (IPv4Network((found.get_attr("RTA_DST"), found["dst_len"])), found.get_attr("RTA_OIF"))
            for found in route.get_routes(family=socket.AF_INET)
            if found["dst_len"] and found.get_attr("RTA_DST")
        ]
    routes = []
    for to, index in listed:
        try:
            routes.append(Route(to, socket.if_indextoname(index) if index else "no link"))
        except OSError:  # the link is gone since, and its routes with it
            continue
    return routes


def judge(lab: Rendered, routes: Sequence[Route], others: Iterable[Rendered]) -> Seen:
    """What overlaps. A route into the nodes' range takes their packets; a wider one is only shadowed."""
    ranges = {
        "nodes": ipaddress.IPv4Network(lab.nodes_range),
        "pods": ipaddress.IPv4Network(lab.pods_range),
        "services": ipaddress.IPv4Network(lab.services_range),
    }
    seen = ", ".join(f"{field} {network}" for field, network in ranges.items())
    own = _own(lab, routes)
    foreign = [route for route in routes if route.link not in own and not route.link.startswith("updoc")]
    taken: list[tuple[str, str]] = []
    shadowed: list[tuple[str, str]] = []
    for (one, network), (other, second) in combinations(ranges.items(), 2):
        if network.overlaps(second):
            taken.append((other, f"the lab's own ranges {one} {network} and {other} {second} overlap"))
    for lab_beside in others:
        if ranges["nodes"].overlaps(IPv4Network(lab_beside.nodes_range)):
            taken.append(("nodes", f"lab {lab_beside.id} has its nodes in {lab_beside.nodes_range}"))
    for route in foreign:
        for field, network in ranges.items():
            if not route.to.overlaps(network):
                continue
            told = f"the host reaches {route.to} by {route.link}, which overlaps the {field} range {network}"
            inner = route.to.subnet_of(network)
            (taken if field == "nodes" and inner else shadowed).append((field, told))
    if taken:
        cause = "; ".join(dict.fromkeys(told for _, told in taken))
        return fail(seen, cause, FIX.format(field=taken[0][0]))
    if shadowed:
        cause = "; ".join(dict.fromkeys(told for _, told in shadowed))
        return warn(
            seen,
            f"{cause}; while the lab is up, one of the two cannot be reached from the other's side",
            FIX.format(field=shadowed[0][0]),
        )
    return ok(f"{seen}; no route of the host overlaps")


def _own(lab: Rendered, routes: Iterable[Route]) -> set[str]:
    """The links that lead into the lab itself: VirtualBox names that of its network."""
    vboxs = [route for route in routes if route.link.startswith("vboxnet")]
    mine = {route.link for route in vboxs if str(route.to) == lab.nodes_range}
    return {lab.uplink, *(mine if lab.hypervisor == "virtualbox" else ())}

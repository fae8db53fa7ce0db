"""From the policies that select an endpoint to what its policy map says. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from agent.identity.reserved import Reserved
from agent.model.objects import Protocol as Transport
from agent.policy.rules import Direction, Peer, Policy, PortRange, Rule
from agent.services.compile import stable_number

ANYBODY = 0

NamedPorts = tuple[tuple[str, Transport, int], ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """One statement about a peer: identity (ANYBODY for all), protocol (0 for any) and ports.

    `rule` is the id under which flows name the rule. Where a denial and an allowance overlap, the
    denial holds.
    """

    direction: Direction
    identity: int
    protocol: int
    first: int
    last: int
    deny: bool
    rule: int


class Directory(Protocol):
    """Who is who, as far as this node knows."""

    def resolve(self, peer: Peer) -> frozenset[int]:
        """The identities that a peer stands for."""

    def ports_of(self, identity: int) -> NamedPorts:
        """The named ports of the pods that have the identity."""

    def with_port(self, name: str) -> frozenset[int]:
        """The identities of pods that have a port of that name."""


_BALANCED = (Transport.TCP, Transport.UDP, Transport.SCTP)
HOST_RULE = stable_number("underpass:own-node")
OPEN_RULES = {d: stable_number(f"underpass:not-isolated:{d}") for d in Direction}


def rule_id(policy: Policy, rule: Rule) -> int:
    """The number by which entries and flows name the rule; the same after a restart."""
    return stable_number(f"{policy.id}:{rule.path}")


def rule_names(policies: Iterable[Policy]) -> dict[int, str]:
    """What the rule numbers stand for, in words."""
    names = {HOST_RULE: "the pod's own node"}
    names.update({OPEN_RULES[d]: f"no policy isolates {d}" for d in Direction})
    for policy in policies:
        for rule in policy.rules:
            names[rule_id(policy, rule)] = f"{policy.id} {rule.path}"
    return names


def compile_endpoint(
    policies: Iterable[Policy], own_ports: NamedPorts, directory: Directory
) -> frozenset[Grant]:
    """All grants of an endpoint that `policies` select.

    `own_ports` are its named ports. A direction that no policy isolates is open to anybody, except for
    what is denied. The own node is let in always: it probes the pod.
    """
    policies = tuple(policies)
    isolated = {direction for policy in policies for direction in policy.isolates}
    grants: set[Grant] = {
        Grant(direction, ANYBODY, 0, 0, 65535, False, OPEN_RULES[direction])
        for direction in Direction
        if direction not in isolated
    }
    grants.add(Grant(Direction.INGRESS, int(Reserved.HOST), 0, 0, 65535, False, HOST_RULE))
    for policy in policies:
        for rule in policy.rules:
            grants |= _grants(policy, rule, own_ports, directory)
    return frozenset(grants)


def _grants(policy: Policy, rule: Rule, own_ports: NamedPorts, directory: Directory) -> set[Grant]:
    identities: set[int] = {ANYBODY} if rule.peers is None else set()
    for peer in rule.peers or ():
        identities |= directory.resolve(peer)
    number = rule_id(policy, rule)
    found: set[Grant] = set()
    for port in rule.ports if rule.ports is not None else (None,):
        for identity in _receivers(port, rule.direction, identities, directory):
            ports = own_ports if rule.direction == Direction.INGRESS else directory.ports_of(identity)
            for protocol, first, last in _numbers(port, ports):
                found.add(Grant(rule.direction, identity, protocol, first, last, rule.deny, number))
    return found


def _receivers(
    port: PortRange | None, direction: Direction, identities: set[int], directory: Directory
) -> Iterable[int]:
    """The identities to write entries for: a name that anybody may have is looked up with all that do."""
    named = port is not None and port.name and direction == Direction.EGRESS
    if named and ANYBODY in identities:
        assert port is not None
        return directory.with_port(port.name)
    return identities


def _numbers(port: PortRange | None, named: NamedPorts) -> list[tuple[int, int, int]]:
    """(protocol, first, last) of a port range; `named` is what a name can stand for."""
    if port is None:
        return [(0, 0, 65535)]
    protocols = _BALANCED if port.protocol == Transport.ANY else (port.protocol,)
    if not port.name:
        return [(protocol.number, port.first, port.last) for protocol in protocols]
    return [
        (protocol.number, number, number)
        for name, protocol, number in named
        if name == port.name and protocol in protocols
    ]

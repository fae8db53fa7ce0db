"""Kubernetes NetworkPolicy (networking.k8s.io/v1), read in full.

Upstream's meaning: a policy isolates what it selects in the directions of its policyTypes; an absent or
empty `from`/`to` is anybody, an absent or empty `ports` everything. An ipBlock matches by address alone,
whoever holds it; when its `except` leaves nothing, it matches nobody.
"""

from __future__ import annotations

from agent.identity.labels import NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SOURCE
from agent.model.faults import Fault, known_fields, list_at
from agent.model.labels import Requirement, Selector, parse_selector
from agent.model.objects import PolicySource, Protocol
from agent.policy.rules import (
    Direction,
    Parsed,
    Peer,
    Policy,
    PortRange,
    Rule,
    SelectedPeers,
    block_at,
)

_PEERS = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


def parse(source: PolicySource) -> Parsed:
    """The policy of a NetworkPolicy resource."""
    faults: list[Fault] = []
    spec = known_fields(
        source.document.get("spec"), ("podSelector", "policyTypes", "ingress", "egress"), "spec", faults
    )
    if not isinstance(source.document.get("spec"), dict):
        return Parsed((), tuple(faults))
    chosen = parse_selector(spec.get("podSelector") or {}, SOURCE.__add__, "spec.podSelector", faults)
    isolates = _isolates(spec)
    rules = tuple(
        rule
        for direction in sorted(isolates)
        for rule in _rules(spec, direction, source.name.namespace, faults)
    )
    if chosen is None:
        return Parsed((), tuple(faults))
    subjects = Selector((_in_namespace(source.name.namespace),)).both(chosen)
    kept = () if faults else rules
    return Parsed((Policy("NetworkPolicy", source.name, 0, subjects, isolates, kept),), tuple(faults))


def _in_namespace(namespace: str) -> Requirement:
    return Requirement(NAMESPACE_KEY, "In", frozenset([namespace]))


def _isolates(spec: dict[str, object]) -> frozenset[Direction]:
    types = spec.get("policyTypes")
    if isinstance(types, list) and types:
        return frozenset(d for d in Direction if d.value.capitalize() in types)
    return frozenset(Direction) if spec.get("egress") else frozenset({Direction.INGRESS})


def _rules(spec: dict[str, object], direction: Direction, namespace: str, faults: list[Fault]) -> list[Rule]:
    field = _PEERS[direction]
    found: list[Rule] = []
    for index, item in enumerate(list_at(spec, direction.value, "spec", faults) or []):
        path = f"spec.{direction}[{index}]"
        fields = known_fields(item, (field, "ports"), path, faults)
        peers = [
            peer
            for at, one in enumerate(list_at(fields, field, path, faults) or [])
            for peer in _peer(one, f"{path}.{field}[{at}]", namespace, faults)
        ]
        ports = [
            port
            for at, one in enumerate(list_at(fields, "ports", path, faults) or [])
            for port in _port(one, f"{path}.ports[{at}]", faults)
        ]
        found.append(
            Rule(
                direction=direction,
                peers=tuple(peers) if fields.get(field) else None,
                ports=tuple(ports) if fields.get("ports") else None,
                deny=False,
                path=path,
            )
        )
    return found


def _peer(item: object, path: str, namespace: str, faults: list[Fault]) -> list[Peer]:
    """The peer; none for a block of IPv6 addresses, and for a fault."""
    before = len(faults)
    fields = known_fields(item, ("podSelector", "namespaceSelector", "ipBlock"), path, faults)
    pods, namespaces, block = (fields.get(n) for n in ("podSelector", "namespaceSelector", "ipBlock"))
    if block is not None:
        if pods is not None or namespaces is not None:
            faults.append(Fault(f"{path}.ipBlock", "cannot stand beside a selector"))
        return block_at(block, f"{path}.ipBlock", everybody=True, faults=faults)
    if pods is None and namespaces is None:
        if len(faults) == before:
            faults.append(Fault(path, "an empty peer"))
        return []
    where: Selector | None = Selector((_in_namespace(namespace),))
    if namespaces is not None:
        where = parse_selector(
            namespaces, NAMESPACE_LABEL_PREFIX.__add__, f"{path}.namespaceSelector", faults
        )
        # Some namespace: without this, an empty selector would match what is no pod at all.
        where = where and Selector((Requirement(NAMESPACE_KEY, "Exists"),)).both(where)
    chosen = parse_selector(pods or {}, SOURCE.__add__, f"{path}.podSelector", faults)
    return [SelectedPeers(where.both(chosen))] if where and chosen else []


def _port(item: object, path: str, faults: list[Fault]) -> list[PortRange]:
    """The ports; none for a fault."""
    fields = known_fields(item, ("protocol", "port", "endPort"), path, faults)
    before = len(faults)
    name = str(fields.get("protocol") or "TCP")
    if name not in set(Protocol):
        faults.append(Fault(f"{path}.protocol", f"unknown protocol {name!r}"))
    port, last = fields.get("port"), fields.get("endPort")
    if port is None and last is not None:
        faults.append(Fault(f"{path}.endPort", "needs a port"))
    elif isinstance(port, str) and last is not None:
        faults.append(Fault(f"{path}.endPort", "cannot be used with a named port"))
    elif isinstance(port, int) and not 0 < port < 65536:
        faults.append(Fault(f"{path}.port", f"not a port: {port!r}"))
    elif isinstance(port, int) and last is not None and not (isinstance(last, int) and port <= last < 65536):
        faults.append(Fault(f"{path}.endPort", f"not a port at or above {port}: {last!r}"))
    elif port is not None and not isinstance(port, int | str):
        faults.append(Fault(f"{path}.port", f"not a port: {port!r}"))
    if len(faults) > before:
        return []
    protocol = Protocol(name)
    if isinstance(port, str):
        return [PortRange(protocol, name=port)]
    if not isinstance(port, int):
        return [PortRange(protocol)]
    return [PortRange(protocol, port, last if isinstance(last, int) else port)]

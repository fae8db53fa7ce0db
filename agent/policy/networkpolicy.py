"""Kubernetes NetworkPolicy (networking.k8s.io/v1), read in full.

Upstream's meaning: a policy isolates what it selects in the directions of its policyTypes; an absent or
empty `from`/`to` is anybody, an absent or empty `ports` everything. An ipBlock matches by address alone,
whoever holds it; when its `except` leaves nothing, it matches nobody.
"""

from __future__ import annotations

from agent.identity.labels import NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SOURCE
from agent.model.labels import BadSelectorError, Requirement, Selector, parse_selector
from agent.model.objects import PolicySource, Protocol
from agent.policy.rules import (
    AddressPeers,
    Direction,
    Fault,
    FieldError,
    Parsed,
    Peer,
    Policy,
    PortRange,
    Rule,
    SelectedPeers,
    known_fields,
    list_at,
    network_at,
)

_PEERS = {Direction.INGRESS: "from", Direction.EGRESS: "to"}


def parse(source: PolicySource) -> Parsed:
    """The policy of a NetworkPolicy resource."""
    spec = source.document.get("spec")
    if not isinstance(spec, dict):
        return Parsed((), (Fault("spec", "must be an object"),))
    try:
        chosen = parse_selector(spec.get("podSelector") or {}, SOURCE.__add__)
    except BadSelectorError as fault:
        return Parsed((), (Fault(f"spec.podSelector.{fault.path}", fault.reason),))
    subjects = Selector((_in_namespace(source.name.namespace),)).both(chosen)
    isolates = _isolates(spec)
    rules: tuple[Rule, ...] = ()
    faults: tuple[Fault, ...] = ()
    try:
        known_fields(spec, ("podSelector", "policyTypes", "ingress", "egress"), "spec")
        rules = tuple(
            rule for direction in sorted(isolates) for rule in _rules(spec, direction, source.name.namespace)
        )
    except FieldError as fault:
        faults = (fault.fault,)
    return Parsed((Policy("NetworkPolicy", source.name, 0, subjects, isolates, rules),), faults)


def _in_namespace(namespace: str) -> Requirement:
    return Requirement(NAMESPACE_KEY, "In", frozenset([namespace]))


def _isolates(spec: dict[str, object]) -> frozenset[Direction]:
    types = spec.get("policyTypes")
    if isinstance(types, list) and types:
        return frozenset(d for d in Direction if d.value.capitalize() in types)
    return frozenset(Direction) if spec.get("egress") else frozenset({Direction.INGRESS})


def _rules(spec: dict[str, object], direction: Direction, namespace: str) -> list[Rule]:
    peers_field = _PEERS[direction]
    found: list[Rule] = []
    for index, item in enumerate(list_at(spec, direction.value, "spec") or []):
        path = f"spec.{direction}[{index}]"
        fields = known_fields(item, (peers_field, "ports"), path)
        peers = list_at(fields, peers_field, path)
        ports = list_at(fields, "ports", path)
        found.append(
            Rule(
                direction=direction,
                peers=tuple(
                    peer
                    for at, one in enumerate(peers)
                    for peer in _peer(one, f"{path}.{peers_field}[{at}]", namespace)
                )
                if peers
                else None,
                ports=tuple(_port(one, f"{path}.ports[{at}]") for at, one in enumerate(ports))
                if ports
                else None,
                deny=False,
                path=path,
            )
        )
    return found


def _peer(item: object, path: str, namespace: str) -> list[Peer]:
    """The peer; none for a block of IPv6 addresses."""
    fields = known_fields(item, ("podSelector", "namespaceSelector", "ipBlock"), path)
    pods, namespaces, block = (fields.get(n) for n in ("podSelector", "namespaceSelector", "ipBlock"))
    if block is not None:
        if pods is not None or namespaces is not None:
            raise FieldError(f"{path}.ipBlock", "cannot stand beside a selector")
        return _block(block, f"{path}.ipBlock")
    if pods is None and namespaces is None:
        raise FieldError(path, "an empty peer")
    try:
        where = (
            Selector((_in_namespace(namespace),))
            if namespaces is None
            # Some namespace: without this, an empty selector would match what is no pod at all.
            else Selector((Requirement(NAMESPACE_KEY, "Exists"),)).both(
                parse_selector(namespaces, NAMESPACE_LABEL_PREFIX.__add__)
            )
        )
    except BadSelectorError as fault:
        raise FieldError(f"{path}.namespaceSelector.{fault.path}", fault.reason) from fault
    try:
        return [SelectedPeers(where.both(parse_selector(pods or {}, SOURCE.__add__)))]
    except BadSelectorError as fault:
        raise FieldError(f"{path}.podSelector.{fault.path}", fault.reason) from fault


def _block(block: object, path: str) -> list[Peer]:
    fields = known_fields(block, ("cidr", "except"), path)
    network = network_at(fields.get("cidr"), f"{path}.cidr")
    excepts = [
        network_at(text, f"{path}.except[{index}]")
        for index, text in enumerate(list_at(fields, "except", path) or [])
    ]
    if network is None:
        return []
    return [AddressPeers(network, tuple(e for e in excepts if e is not None), everybody=True)]


def _port(item: object, path: str) -> PortRange:
    fields = known_fields(item, ("protocol", "port", "endPort"), path)
    try:
        protocol = Protocol(str(fields.get("protocol") or "TCP"))
    except ValueError as fault:
        raise FieldError(f"{path}.protocol", f"unknown protocol {fields.get('protocol')!r}") from fault
    port, last = fields.get("port"), fields.get("endPort")
    if port is None:
        if last is not None:
            raise FieldError(f"{path}.endPort", "needs a port")
        return PortRange(protocol)
    if isinstance(port, str):
        if last is not None:
            raise FieldError(f"{path}.endPort", "cannot be used with a named port")
        return PortRange(protocol, name=port)
    if not isinstance(port, int) or not 0 < port < 65536:
        raise FieldError(f"{path}.port", f"not a port: {port!r}")
    if last is None:
        return PortRange(protocol, port, port)
    if not isinstance(last, int) or not port <= last < 65536:
        raise FieldError(f"{path}.endPort", f"not a port at or above {port}: {last!r}")
    return PortRange(protocol, port, last)

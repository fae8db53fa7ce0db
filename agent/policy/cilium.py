"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2): the L3 and L4 part, Cilium's way.

What is not supported is a fault with the field's path. A policy with faults still closes what it selects
in each direction that it has rules for; its readable denials hold, a denial that cannot be read denies
everything in its direction. A subject selector that cannot be read selects nothing, so it closes nothing.
"""

from __future__ import annotations

from agent.identity.labels import NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SOURCE
from agent.model.labels import BadSelectorError, Requirement, Selector, parse_selector
from agent.model.objects import PolicySource, Protocol
from agent.policy.rules import (
    AddressPeers,
    Direction,
    Entity,
    EntityPeers,
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

RESERVED_SOURCE = "reserved:"
_SECTIONS = (
    (Direction.INGRESS, "ingress", False),
    (Direction.INGRESS, "ingressDeny", True),
    (Direction.EGRESS, "egress", False),
    (Direction.EGRESS, "egressDeny", True),
)
_RULE_FIELDS = ("endpointSelector", "labels", "description", "enableDefaultDeny", *(s[1] for s in _SECTIONS))
_PEER_FIELDS = {
    Direction.INGRESS: ("fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet"),
    Direction.EGRESS: ("toEndpoints", "toEntities", "toCIDR", "toCIDRSet"),
}
# Names that Cilium accepts for ICMP types (IPv4), https://docs.cilium.io, "icmps".
_ICMP_NAMES = {
    "EchoReply": 0,
    "DestinationUnreachable": 3,
    "Redirect": 5,
    "Echo": 8,
    "EchoRequest": 8,
    "RouterAdvertisement": 9,
    "RouterSelection": 10,
    "TimeExceeded": 11,
    "ParameterProblem": 12,
    "Timestamp": 13,
    "TimestampReply": 14,
    "Photuris": 40,
    "ExtendedEcho Request": 42,
    "ExtendedEcho Reply": 43,
}


def parse(source: PolicySource) -> Parsed:
    """The policies of a resource: one for `spec`, one for each of `specs`."""
    policies: list[Policy] = []
    faults: list[Fault] = []
    parts: list[tuple[int, str, object]] = []
    if source.document.get("spec") is not None:
        parts.append((0, "spec", source.document["spec"]))
    many = source.document.get("specs")
    if isinstance(many, list):
        parts.extend((index + 1, f"specs[{index}]", part) for index, part in enumerate(many))
    elif many is not None:
        faults.append(Fault("specs", "must be a list"))
    if not parts and not faults:
        faults.append(Fault("spec", "the policy has neither spec nor specs"))
    for number, path, part in parts:
        policy = _part(source, number, part, path, faults)
        if policy is not None:
            policies.append(policy)
    return Parsed(tuple(policies), tuple(faults))


def _part(source: PolicySource, number: int, part: object, path: str, faults: list[Fault]) -> Policy | None:
    if not isinstance(part, dict):
        faults.append(Fault(path, "must be an object"))
        return None
    if part.get("nodeSelector") is not None:
        faults.append(Fault(f"{path}.nodeSelector", "policies for nodes are not supported"))
        return None
    namespace = source.name.namespace
    if part.get("endpointSelector") is None:
        faults.append(Fault(f"{path}.endpointSelector", "is missing"))
        return None
    try:
        subjects = _subjects(part["endpointSelector"], namespace)
    except BadSelectorError as fault:
        faults.append(Fault(f"{path}.endpointSelector.{fault.path}".rstrip("."), fault.reason))
        return None

    count = len(faults)
    rules: list[Rule] = []
    has_rules: set[Direction] = set()
    try:
        known_fields(part, _RULE_FIELDS, path)
    except FieldError as fault:
        faults.append(fault.fault)
    for direction, section, deny in _SECTIONS:
        try:
            items = list_at(part, section, path) or []
        except FieldError as fault:
            faults.append(fault.fault)
            items = [None] if deny else []
            has_rules.add(direction)
        for index, item in enumerate(items):
            has_rules.add(direction)
            where = f"{path}.{section}[{index}]"
            try:
                rules.append(_rule(item, direction, deny, namespace, where))
            except FieldError as fault:
                faults.append(fault.fault)
                if deny:
                    rules.append(Rule(direction, None, None, deny=True, path=where))
    isolates = frozenset(has_rules)
    if len(faults) > count:
        rules = [rule for rule in rules if rule.deny]
    else:
        try:
            isolates = _default_deny(part.get("enableDefaultDeny"), isolates, path)
        except FieldError as fault:
            faults.append(fault.fault)
            rules = [rule for rule in rules if rule.deny]
    return Policy(source.kind, source.name, number, subjects, isolates, tuple(rules))


def _default_deny(value: object, isolates: frozenset[Direction], path: str) -> frozenset[Direction]:
    if value is None:
        return isolates
    fields = known_fields(value, ("ingress", "egress"), f"{path}.enableDefaultDeny")
    chosen = set(isolates)
    for direction in Direction:
        wanted = fields.get(direction.value)
        if wanted is True:
            chosen.add(direction)
        elif wanted is False:
            chosen.discard(direction)
        elif wanted is not None:
            raise FieldError(f"{path}.enableDefaultDeny.{direction}", "must be true or false")
    return frozenset(chosen)


def label_name(key: str) -> str:
    """The label that a selector's key means: Cilium's "source:key", where no source is any source."""
    source, colon, rest = key.partition(":")
    if not colon or source in ("any", "k8s"):
        return SOURCE + (rest if colon else key)
    if source == "reserved":
        return key
    raise ValueError(f"labels of source {source!r} are not supported")


def _subjects(document: object, namespace: str) -> Selector:
    """A policy of a namespace selects there alone, whatever its selector says of namespaces."""
    selector = parse_selector(document, label_name)
    if not namespace:
        return _pods_only(selector)
    kept = tuple(r for r in selector.requirements if r.key != NAMESPACE_KEY)
    return Selector((Requirement(NAMESPACE_KEY, "In", frozenset([namespace])),)).both(Selector(kept))


def _peers_of(document: object, namespace: str) -> Selector:
    """Peers are those of the policy's own namespace unless the selector speaks of namespaces itself."""
    selector = parse_selector(document, label_name)
    keys = [requirement.key for requirement in selector.requirements]
    if any(key.startswith(RESERVED_SOURCE) for key in keys):
        return selector
    if any(key == NAMESPACE_KEY or key.startswith(NAMESPACE_LABEL_PREFIX) for key in keys):
        return _pods_only(selector)
    if namespace:
        return Selector((Requirement(NAMESPACE_KEY, "In", frozenset([namespace])),)).both(selector)
    return _pods_only(selector)


def _pods_only(selector: Selector) -> Selector:
    """Without a reserved label in it, a selector means pods, also when it is empty."""
    return Selector((Requirement(NAMESPACE_KEY, "Exists"),)).both(selector)


def _rule(item: object, direction: Direction, deny: bool, namespace: str, path: str) -> Rule:
    peer_fields = _PEER_FIELDS[direction]
    fields = known_fields(item, (*peer_fields, "toPorts", "icmps"), path)
    given = [name for name in peer_fields if fields.get(name) is not None]
    if len(given) > 1:
        raise FieldError(f"{path}.{given[1]}", f"combining {given[0]} and {given[1]} is not supported")
    ports = _ports(fields, path)
    if not given:
        # Ports alone are for anybody; a rule of nothing at all allows (or denies) nothing.
        peers: tuple[Peer, ...] | None = None if ports is not None else ()
        return Rule(direction, peers, ports, deny, path)
    name = given[0]
    items = list_at(fields, name, path) or []
    peers = tuple(
        peer for at, one in enumerate(items) for peer in _peer(one, name, namespace, f"{path}.{name}[{at}]")
    )
    return Rule(direction, peers, ports, deny, path)


def _peer(item: object, field: str, namespace: str, path: str) -> list[Peer]:
    if field.endswith("Endpoints"):
        try:
            return [SelectedPeers(_peers_of(item, namespace))]
        except BadSelectorError as fault:
            raise FieldError(f"{path}.{fault.path}".rstrip("."), fault.reason) from fault
    if field.endswith("Entities"):
        try:
            return [EntityPeers(Entity(str(item)))]
        except ValueError as fault:
            raise FieldError(path, f"unknown entity {item!r}") from fault
    if field.endswith("CIDR"):
        network = network_at(item, path)
        return [AddressPeers(network, (), everybody=False)] if network else []
    fields = known_fields(item, ("cidr", "except"), path)
    network = network_at(fields.get("cidr"), f"{path}.cidr")
    excepts = [
        network_at(text, f"{path}.except[{index}]")
        for index, text in enumerate(list_at(fields, "except", path) or [])
    ]
    if network is None:
        return []
    return [AddressPeers(network, tuple(e for e in excepts if e is not None), everybody=False)]


def _ports(fields: dict[str, object], path: str) -> tuple[PortRange, ...] | None:
    """The ports of toPorts and icmps; None where the rule has neither."""
    blocks = list_at(fields, "toPorts", path) or []
    icmps = list_at(fields, "icmps", path) or []
    if blocks and icmps:
        raise FieldError(f"{path}.icmps", "combining toPorts and icmps is not supported")
    if not blocks and not icmps:
        return None
    found: list[PortRange] = []
    for index, block in enumerate(blocks):
        where = f"{path}.toPorts[{index}]"
        inner = known_fields(block, ("ports",), where)
        found.extend(
            _port(item, f"{where}.ports[{at}]")
            for at, item in enumerate(list_at(inner, "ports", where) or [])
        )
    for index, block in enumerate(icmps):
        where = f"{path}.icmps[{index}]"
        inner = known_fields(block, ("fields",), where)
        for at, item in enumerate(list_at(inner, "fields", where) or []):
            found.extend(_icmp(item, f"{where}.fields[{at}]"))
    return tuple(found)


def _port(item: object, path: str) -> PortRange:
    fields = known_fields(item, ("port", "endPort", "protocol"), path)
    try:
        protocol = Protocol(str(fields.get("protocol") or "ANY"))
    except ValueError as fault:
        raise FieldError(f"{path}.protocol", f"unknown protocol {fields.get('protocol')!r}") from fault
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        raise FieldError(f"{path}.protocol", "ICMP is for icmps, not for toPorts")
    text, last = fields.get("port"), fields.get("endPort") or 0
    if isinstance(text, int):
        text = str(text)
    if not isinstance(text, str) or not text:
        raise FieldError(f"{path}.port", "is missing")
    if not isinstance(last, int) or not 0 <= last < 65536:
        raise FieldError(f"{path}.endPort", f"not a port: {last!r}")
    if not text.isdecimal():
        if last:
            raise FieldError(f"{path}.endPort", "cannot be used with a named port")
        return PortRange(protocol, name=text)
    first = int(text)
    if first > 65535:
        raise FieldError(f"{path}.port", f"not a port: {text!r}")
    if first == 0:
        return PortRange(protocol)
    if last and last < first:
        raise FieldError(f"{path}.endPort", f"is below the port {first}")
    return PortRange(protocol, first, last or first)


def _icmp(item: object, path: str) -> list[PortRange]:
    fields = known_fields(item, ("type", "family"), path)
    if fields.get("family") not in (None, "IPv4", "IPv6"):
        raise FieldError(f"{path}.family", f"unknown family {fields.get('family')!r}")
    kind = fields.get("type")
    number = _ICMP_NAMES.get(kind) if isinstance(kind, str) and not kind.isdecimal() else kind
    if fields.get("family") == "IPv6":
        return []
    try:
        value = int(str(number))
    except ValueError as fault:
        raise FieldError(f"{path}.type", f"unknown ICMP type {kind!r}") from fault
    if not 0 <= value < 256:
        raise FieldError(f"{path}.type", f"not an ICMP type: {kind!r}")
    return [PortRange(Protocol.ICMP, value, value)]

"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2): the L3 and L4 part, Cilium's way.

What is not supported is a fault with the field's path; all of them are told. A policy with faults still
closes what it selects in each direction that it has rules for; its readable denials hold, a denial that
cannot be read denies everything in its direction. A subject selector that cannot be read selects nothing,
so it closes nothing.
"""

from __future__ import annotations

from agent.identity.labels import NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SOURCE
from agent.model.faults import Fault, known_fields, list_at
from agent.model.labels import Requirement, Selector, parse_selector
from agent.model.objects import PolicySource, Protocol
from agent.policy.rules import (
    AddressPeers,
    Direction,
    Entity,
    EntityPeers,
    Parsed,
    Peer,
    Policy,
    PortRange,
    Rule,
    SelectedPeers,
    block_at,
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
    before = len(faults)
    subjects = _subjects(part["endpointSelector"], namespace, f"{path}.endpointSelector", faults)
    known_fields(part, _RULE_FIELDS, path, faults)
    rules: list[Rule] = []
    has_rules: set[Direction] = set()
    for direction, section, deny in _SECTIONS:
        if _section(part, direction, section, deny, namespace, path, rules, faults):
            has_rules.add(direction)
    isolates = frozenset(has_rules)
    wanted = _default_deny(part.get("enableDefaultDeny"), isolates, path, faults)
    if subjects is None:
        return None
    if len(faults) > before:
        rules = [rule for rule in rules if rule.deny]
    else:
        isolates = wanted
    return Policy(source.kind, source.name, number, subjects, isolates, tuple(rules))


def _section(
    part: dict[str, object],
    direction: Direction,
    section: str,
    deny: bool,
    namespace: str,
    path: str,
    rules: list[Rule],
    faults: list[Fault],
) -> bool:
    """Read one list of rules. Tells whether it has any, be they readable or not.

    A denial that cannot be read denies everything.
    """
    before = len(faults)
    items = list_at(part, section, path, faults) or []
    parts = [(f"{path}.{section}[{index}]", item) for index, item in enumerate(items)]
    if len(faults) > before and deny:
        rules.append(Rule(direction, None, None, deny, f"{path}.{section}"))
    for where, item in parts:
        count = len(faults)
        rule = _rule(item, direction, deny, namespace, where, faults)
        if len(faults) == count:
            rules.append(rule)
        elif deny:
            rules.append(Rule(direction, None, None, deny, where))
    return bool(parts) or len(faults) > before


def _default_deny(
    value: object, isolates: frozenset[Direction], path: str, faults: list[Fault]
) -> frozenset[Direction]:
    if value is None:
        return isolates
    fields = known_fields(value, ("ingress", "egress"), f"{path}.enableDefaultDeny", faults)
    chosen = set(isolates)
    for direction in Direction:
        wanted = fields.get(direction.value)
        if wanted is True:
            chosen.add(direction)
        elif wanted is False:
            chosen.discard(direction)
        elif wanted is not None:
            faults.append(Fault(f"{path}.enableDefaultDeny.{direction}", "must be true or false"))
    return frozenset(chosen)


def label_name(key: str) -> str:
    """The label that a selector's key means: Cilium's "source:key", where no source is any source."""
    source, colon, rest = key.partition(":")
    if not colon or source in ("any", "k8s"):
        return SOURCE + (rest if colon else key)
    if source == "reserved":
        return key
    raise ValueError(f"labels of source {source!r} are not supported")


def _subjects(document: object, namespace: str, path: str, faults: list[Fault]) -> Selector | None:
    """A policy of a namespace selects there alone, whatever its selector says of namespaces."""
    selector = parse_selector(document, label_name, path, faults)
    if selector is None or not namespace:
        return selector and _pods_only(selector)
    kept = tuple(r for r in selector.requirements if r.key != NAMESPACE_KEY)
    return Selector((Requirement(NAMESPACE_KEY, "In", frozenset([namespace])),)).both(Selector(kept))


def _peers_of(selector: Selector, namespace: str) -> Selector:
    """Peers are those of the policy's own namespace unless the selector speaks of namespaces itself."""
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


def _rule(
    item: object, direction: Direction, deny: bool, namespace: str, path: str, faults: list[Fault]
) -> Rule:
    """The rule; where faults were found, not to be used."""
    peer_fields = _PEER_FIELDS[direction]
    fields = known_fields(item, (*peer_fields, "toPorts", "icmps"), path, faults)
    given = [name for name in peer_fields if fields.get(name) is not None]
    faults.extend(
        Fault(f"{path}.{name}", f"combining {given[0]} and {name} is not supported") for name in given[1:]
    )
    ports = _ports(fields, path, faults)
    found = [
        peer
        for name in given
        for at, one in enumerate(list_at(fields, name, path, faults) or [])
        for peer in _peer(one, name, namespace, f"{path}.{name}[{at}]", faults)
    ]
    # Ports alone are for anybody; a rule of nothing at all allows (or denies) nothing.
    peers = tuple(found) if given or ports is None else None
    return Rule(direction, peers, ports, deny, path)


def _peer(item: object, field: str, namespace: str, path: str, faults: list[Fault]) -> list[Peer]:
    """The peers; none for IPv6 addresses, and for a fault."""
    if field.endswith("Endpoints"):
        selector = parse_selector(item, label_name, path, faults)
        return [SelectedPeers(_peers_of(selector, namespace))] if selector else []
    if field.endswith("Entities"):
        if str(item) not in set(Entity):
            faults.append(Fault(path, f"unknown entity {item!r}"))
            return []
        return [EntityPeers(Entity(str(item)))]
    if field.endswith("CIDR"):
        network = network_at(item, path, faults)
        return [AddressPeers(network, (), everybody=False)] if network else []
    return block_at(item, path, everybody=False, faults=faults)


def _ports(fields: dict[str, object], path: str, faults: list[Fault]) -> tuple[PortRange, ...] | None:
    """The ports of toPorts and icmps; None where the rule has neither."""
    blocks = list_at(fields, "toPorts", path, faults) or []
    icmps = list_at(fields, "icmps", path, faults) or []
    if blocks and icmps:
        faults.append(Fault(f"{path}.icmps", "combining toPorts and icmps is not supported"))
    if not blocks and not icmps:
        return None
    found: list[PortRange] = []
    for index, block in enumerate(blocks):
        where = f"{path}.toPorts[{index}]"
        inner = known_fields(block, ("ports",), where, faults)
        for at, item in enumerate(list_at(inner, "ports", where, faults) or []):
            found.extend(_port(item, f"{where}.ports[{at}]", faults))
    for index, block in enumerate(icmps):
        where = f"{path}.icmps[{index}]"
        inner = known_fields(block, ("fields",), where, faults)
        for at, item in enumerate(list_at(inner, "fields", where, faults) or []):
            found.extend(_icmp(item, f"{where}.fields[{at}]", faults))
    return tuple(found)


def _port(item: object, path: str, faults: list[Fault]) -> list[PortRange]:
    """The ports; none for a fault."""
    before = len(faults)
    fields = known_fields(item, ("port", "endPort", "protocol"), path, faults)
    name = str(fields.get("protocol") or "ANY")
    if name not in set(Protocol):
        faults.append(Fault(f"{path}.protocol", f"unknown protocol {name!r}"))
    elif Protocol(name) in (Protocol.ICMP, Protocol.ICMPV6):
        faults.append(Fault(f"{path}.protocol", "ICMP is for icmps, not for toPorts"))
    text, last = fields.get("port"), fields.get("endPort") or 0
    if isinstance(text, int):
        text = str(text)
    if not isinstance(text, str) or not text:
        faults.append(Fault(f"{path}.port", "is missing"))
        text = "0"
    if not isinstance(last, int) or not 0 <= last < 65536:
        faults.append(Fault(f"{path}.endPort", f"not a port: {last!r}"))
        last = 0
    named = not text.isdecimal()
    first = 0 if named else int(text)
    if first > 65535:
        faults.append(Fault(f"{path}.port", f"not a port: {text!r}"))
    elif last and named:
        faults.append(Fault(f"{path}.endPort", "cannot be used with a named port"))
    elif first and last and last < first:
        faults.append(Fault(f"{path}.endPort", f"is below the port {first}"))
    if len(faults) > before:
        return []
    protocol = Protocol(name)
    if named:
        return [PortRange(protocol, name=text)]
    return [PortRange(protocol, first, last or first) if first else PortRange(protocol)]


def _icmp(item: object, path: str, faults: list[Fault]) -> list[PortRange]:
    """The type as a port; none for one of IPv6, and for a fault."""
    fields = known_fields(item, ("type", "family"), path, faults)
    family, kind = fields.get("family"), fields.get("type")
    if family not in (None, "IPv4", "IPv6"):
        faults.append(Fault(f"{path}.family", f"unknown family {family!r}"))
    if family == "IPv6":
        return []
    number = _ICMP_NAMES.get(kind) if isinstance(kind, str) and not kind.isdecimal() else kind
    try:
        value = int(str(number))
    except ValueError:
        faults.append(Fault(f"{path}.type", f"unknown ICMP type {kind!r}"))
        return []
    if not 0 <= value < 256:
        faults.append(Fault(f"{path}.type", f"not an ICMP type: {kind!r}"))
        return []
    return [PortRange(Protocol.ICMP, value, value)]

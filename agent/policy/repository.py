"""All policies and all identities, and which endpoints a change of one of them concerns.

Nothing here is computed for the whole cluster when one thing changes: a selector keeps the set of
identities that it matches, a policy knows the peers that it names, and an endpoint knows the policies
that select it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable
from ipaddress import IPv4Network
from typing import TypeVar

from agent.identity.reserved import FIRST_POD_IDENTITY, RESERVED, Reserved, is_local
from agent.model.labels import Selector
from agent.model.objects import Identity, Labels, PolicySource
from agent.policy import cilium, networkpolicy
from agent.policy.cidrs import Ranges, contains
from agent.policy.compile import Grant, NamedPorts, compile_endpoint, rule_names
from agent.policy.rules import (
    AddressPeers,
    Entity,
    EntityPeers,
    Parsed,
    Peer,
    Policy,
    SelectedPeers,
)

SourceKey = tuple[str, str]
_NODES = "nodes"


def parse(source: PolicySource) -> Parsed:
    """Read a policy resource of any kind."""
    return networkpolicy.parse(source) if source.kind == "NetworkPolicy" else cilium.parse(source)


class Repository:
    """Policies, identities and addresses of the cluster, as the compiler needs them.

    Methods that change something return the keys of the local endpoints that must be compiled again.
    """

    def __init__(self, pod_ranges: Iterable[IPv4Network] = ()) -> None:
        self._pod_ranges = tuple(pod_ranges)
        self.ranges = Ranges(self._pod_ranges)
        self._sources: dict[SourceKey, Parsed] = {}
        self._identities: dict[int, Identity] = dict(RESERVED)
        self._matches: dict[Selector, set[int]] = {}
        self._inside: dict[AddressPeers, set[int]] = {}
        self._users: dict[Peer, set[SourceKey]] = {}
        self._named_users: set[SourceKey] = set()
        self._addresses: dict[int, dict[Hashable, tuple[IPv4Network, ...]]] = {}
        self._ports: dict[int, dict[Hashable, NamedPorts]] = {}
        self._holders: dict[Hashable, int] = {}
        self._endpoints: dict[Hashable, tuple[Labels, NamedPorts]] = {}
        self._api_servers: frozenset[IPv4Network] = frozenset()

    # What there is

    def policies(self) -> list[Policy]:
        return [policy for parsed in self._sources.values() for policy in parsed.policies]

    def identity(self, number: int) -> Identity | None:
        return self._identities.get(number)

    def identities(self) -> list[Identity]:
        return sorted(self._identities.values(), key=lambda identity: identity.number)

    def selecting(self, labels: Labels) -> list[Policy]:
        """The policies whose subjects include an endpoint with these identity labels."""
        return [policy for policy in self.policies() if policy.subjects.matches(labels)]

    def rule_names(self) -> dict[int, str]:
        return rule_names(self.policies())

    # Changes

    def put_policy(self, key: SourceKey, parsed: Parsed | None) -> set[Hashable]:
        """A policy is new, different, or gone (None)."""
        before = self._sources.pop(key, None)
        concerned = set()
        for old in before.policies if before else ():
            concerned |= self._selected(old)
        ranges_moved = False
        # New names first: a peer that both versions name keeps its sets, a range its number.
        for peer in _peers(parsed):
            ranges_moved |= self._use(peer, key)
        if parsed is not None:
            self._sources[key] = parsed
            for new in parsed.policies:
                concerned |= self._selected(new)
        for peer in _peers(before) - _peers(parsed):
            ranges_moved |= self._leave(peer, key)
        for peer in _peers(before) & _peers(parsed):
            if isinstance(peer, AddressPeers):
                self.ranges.leave(peer)
        self._named_users.discard(key)
        if parsed and any(_names_ports(policy) for policy in parsed.policies):
            self._named_users.add(key)
        if ranges_moved:
            concerned |= self._users_of_ranges()
        return concerned

    def put_identity(self, number: int, identity: Identity | None) -> set[Hashable]:
        """An identity is new, or gone (None). Reserved ones stay as they are."""
        if number < FIRST_POD_IDENTITY:
            return set()
        before = self._identities.get(number)
        if before and identity and before.labels == identity.labels:
            return set()
        if identity is None:
            self._identities.pop(number, None)
        else:
            self._identities[number] = identity
        moved: set[Peer] = set()
        for selector, matched in self._matches.items():
            wanted = identity is not None and selector.matches(identity.labels)
            if wanted != (number in matched):
                (matched.add if wanted else matched.discard)(number)
                moved.add(SelectedPeers(selector))
        if before is None or identity is None:
            moved.add(EntityPeers(Entity.CLUSTER))
        return self._concerned(moved)

    def put_holder(
        self, holder: Hashable, number: int, addresses: Iterable[str], ports: NamedPorts
    ) -> set[Hashable]:
        """A pod anywhere has this identity, these addresses and named ports. Number 0: it is gone."""
        concerned: set[Hashable] = set()
        before = self._holders.get(holder)
        if before is not None and before != number:
            concerned |= self._set_holder(holder, before, (), ())
            del self._holders[holder]
        if number:
            self._holders[holder] = number
            networks = tuple(IPv4Network(a) for a in addresses if _is_ipv4(a))
            concerned |= self._set_holder(holder, number, networks, ports)
        return concerned

    def put_nodes(self, addresses: Iterable[str]) -> set[Hashable]:
        """The addresses of all other nodes."""
        networks = tuple(IPv4Network(a) for a in addresses if _is_ipv4(a))
        concerned = self._set_holder(_NODES, int(Reserved.REMOTE_NODE), networks, ())
        return concerned | self._concerned([EntityPeers(Entity.KUBE_APISERVER)])

    def put_own_node(self, addresses: Iterable[str]) -> set[Hashable]:
        """The addresses of this node."""
        networks = tuple(IPv4Network(a) for a in addresses if _is_ipv4(a))
        concerned = self._set_holder(_NODES, int(Reserved.HOST), networks, ())
        return concerned | self._concerned([EntityPeers(Entity.KUBE_APISERVER)])

    def put_api_servers(self, addresses: Iterable[str]) -> set[Hashable]:
        """The addresses of the API servers."""
        networks = frozenset(IPv4Network(a) for a in addresses if _is_ipv4(a))
        if networks == self._api_servers:
            return set()
        for network in networks - self._api_servers:
            self.ranges.use(AddressPeers(network, (), everybody=False))
        for network in self._api_servers - networks:
            self.ranges.leave(AddressPeers(network, (), everybody=False))
        self._api_servers = networks
        return self._users_of_ranges() | self._concerned([EntityPeers(Entity.KUBE_APISERVER)])

    def splitting_networks(self) -> frozenset[IPv4Network]:
        """The ranges by which rules tell pods of the same labels apart, since they hold some but not all."""
        named = {n for peer in self._inside for n in (peer.network, *peer.excepts)}
        return frozenset(
            network
            for network in named
            if any(network.overlaps(pods) for pods in self._pod_ranges)
            and not all(pods.subnet_of(network) for pods in self._pod_ranges)
        )

    def forget_unused_ranges(self) -> set[Hashable]:
        """Drop the numbers of ranges that no rule names, once `ipcache` has lost them."""
        return self._users_of_ranges() if self.ranges.forget_unused() else set()

    def put_endpoint(self, key: Hashable, labels: Labels | None, ports: NamedPorts = ()) -> None:
        """A local endpoint whose policy is wanted, with its identity labels; None: no longer."""
        if labels is None:
            self._endpoints.pop(key, None)
        else:
            self._endpoints[key] = (labels, ports)

    # What follows

    def compile(self, key: Hashable) -> frozenset[Grant]:
        """The grants of a local endpoint. KeyError if it is not known."""
        labels, ports = self._endpoints[key]
        return compile_endpoint(self.selecting(labels), ports, self)

    def resolve(self, peer: Peer) -> frozenset[int]:
        """The identities that a peer stands for."""
        if isinstance(peer, SelectedPeers):
            return frozenset(self._matches[peer.selector])
        if isinstance(peer, EntityPeers):
            return self._entity(peer.entity)
        found = self.ranges.members(peer)
        return found | frozenset(self._inside[peer]) if peer.everybody else found

    def ports_of(self, identity: int) -> NamedPorts:
        """The named ports of the pods that have the identity."""
        found: dict[tuple[str, object, int], None] = {}
        for ports in self._ports.get(identity, {}).values():
            found.update(dict.fromkeys(ports))
        return tuple(found)  # type: ignore[arg-type]

    def with_port(self, name: str) -> frozenset[int]:
        """The identities of pods that have a port of that name."""
        return frozenset(
            number
            for number, holders in self._ports.items()
            if any(name == port[0] for ports in holders.values() for port in ports)
        )

    def _entity(self, entity: Entity) -> frozenset[int]:
        if entity == Entity.ALL:
            return frozenset({0})
        if entity in (Entity.WORLD, Entity.WORLD_IPV4):
            return self.ranges.world()
        if entity == Entity.CLUSTER:
            outside = (Reserved.UNKNOWN, Reserved.WORLD)
            return frozenset(n for n in self._identities if n not in outside and not is_local(n))
        if entity == Entity.KUBE_APISERVER:
            return self._api_server_identities()
        single = _SINGLE.get(entity)
        return frozenset({int(single)}) if single is not None else frozenset()

    def _api_server_identities(self) -> frozenset[int]:
        """Nodes have one identity together, so they are meant only where all of them run an API server."""
        found: set[int] = set()
        nodes: set[IPv4Network] = set()
        for number in (int(Reserved.HOST), int(Reserved.REMOTE_NODE)):
            here = set(self._addresses.get(number, {}).get(_NODES, ()))
            nodes |= here
            own = number == Reserved.HOST
            if here & self._api_servers and (own or here <= self._api_servers):
                found.add(number)
        for network in self._api_servers - nodes:
            found |= self.ranges.members(AddressPeers(network, (), everybody=False))
        return frozenset(found)

    # Bookkeeping

    def _use(self, peer: Peer, key: SourceKey) -> bool:
        users = self._users.setdefault(peer, set())
        if isinstance(peer, SelectedPeers) and not users:
            self._matches[peer.selector] = {
                number
                for number, identity in self._identities.items()
                if number and peer.selector.matches(identity.labels)
            }
        if isinstance(peer, AddressPeers) and peer.everybody and not users:
            self._inside[peer] = {number for number in self._addresses if self._is_inside(peer, number)}
        users.add(key)
        return self.ranges.use(peer) if isinstance(peer, AddressPeers) else False

    def _leave(self, peer: Peer, key: SourceKey) -> bool:
        users = self._users[peer]
        users.discard(key)
        if not users:
            del self._users[peer]
            if isinstance(peer, SelectedPeers):
                del self._matches[peer.selector]
            if isinstance(peer, AddressPeers):
                self._inside.pop(peer, None)
        return self.ranges.leave(peer) if isinstance(peer, AddressPeers) else False

    def _set_holder(
        self, holder: Hashable, number: int, networks: tuple[IPv4Network, ...], ports: NamedPorts
    ) -> set[Hashable]:
        concerned: set[Hashable] = set()
        if _replace(self._ports, number, holder, ports):
            concerned |= self._selected_by(self._named_users)
        if _replace(self._addresses, number, holder, networks):
            moved: set[Peer] = set()
            for peer, matched in self._inside.items():
                wanted = self._is_inside(peer, number)
                if wanted != (number in matched):
                    (matched.add if wanted else matched.discard)(number)
                    moved.add(peer)
            concerned |= self._concerned(moved)
        return concerned

    def _is_inside(self, peer: AddressPeers, number: int) -> bool:
        """Whether every address that the identity has is the rule's: one that is not closes it for all."""
        holders = self._addresses.get(number)
        return bool(holders) and all(
            contains(peer, network) for networks in (holders or {}).values() for network in networks
        )

    def _concerned(self, peers: Iterable[Peer]) -> set[Hashable]:
        keys: set[SourceKey] = set()
        for peer in peers:
            keys |= self._users.get(peer, set())
        return self._selected_by(keys)

    def _users_of_ranges(self) -> set[Hashable]:
        """Rules for ranges and for the world mean other numbers when the set of ranges changes."""
        world = (EntityPeers(Entity.WORLD), EntityPeers(Entity.WORLD_IPV4))
        return self._concerned([*world, *(peer for peer in self._users if isinstance(peer, AddressPeers))])

    def _selected_by(self, keys: Iterable[SourceKey]) -> set[Hashable]:
        concerned: set[Hashable] = set()
        for key in keys:
            parsed = self._sources.get(key)
            for policy in parsed.policies if parsed else ():
                concerned |= self._selected(policy)
        return concerned

    def _selected(self, policy: Policy) -> set[Hashable]:
        return {key for key, (labels, _) in self._endpoints.items() if policy.subjects.matches(labels)}


_SINGLE = {
    Entity.HOST: Reserved.HOST,
    Entity.REMOTE_NODE: Reserved.REMOTE_NODE,
    Entity.HEALTH: Reserved.HEALTH,
    Entity.INIT: Reserved.INIT,
    Entity.UNMANAGED: Reserved.UNMANAGED,
    Entity.INGRESS: Reserved.INGRESS,
}


def _peers(parsed: Parsed | None) -> set[Peer]:
    return {
        peer
        for policy in (parsed.policies if parsed else ())
        for rule in policy.rules
        for peer in rule.peers or ()
    }


def _names_ports(policy: Policy) -> bool:
    return any(port.name for rule in policy.rules for port in rule.ports or ())


T = TypeVar("T", bound=tuple[object, ...])


def _replace(table: dict[int, dict[Hashable, T]], number: int, holder: Hashable, value: T) -> bool:
    """Set (or with an empty value remove) what `holder` adds to `number`; returns whether it changed."""
    holders = table.setdefault(number, {})
    if value:
        changed = holders.get(holder) != value
        holders[holder] = value
    else:
        changed = holders.pop(holder, None) is not None
    if not holders:
        del table[number]
    return changed


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True

"""Address ranges of policies as identities of this node.

Each range that a policy names gets a number with the local bit and an entry in `ipcache`, so that a packet
from or to it finds the number of the narrowest range that holds its address. A rule for a range then
means the numbers of all ranges inside it that no exception takes away. Ranges inside the pods' range get
no number: an address there is a pod, known by its own entry, or nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network

from agent.identity.reserved import LOCAL_SCOPE, Reserved
from agent.policy.rules import AddressPeers
from agent.services.compile import stable_number

EVERYWHERE = IPv4Network("0.0.0.0/0")
_SPAN = (1 << 24) - 1


class Ranges:
    """The ranges in use, counted by how many rules name them."""

    def __init__(self, pods: Iterable[IPv4Network] = ()) -> None:
        """`pods` are the ranges that hold pods alone."""
        self._pods = tuple(pods)
        self._numbers: dict[IPv4Network, int] = {}
        self._taken: set[int] = set()
        self._uses: dict[IPv4Network, int] = {}

    def adopt(self, numbers: Mapping[IPv4Network, int]) -> None:
        """Take over the numbers that the kernel already knows, so that a restart changes none."""
        for network, number in numbers.items():
            if network not in self._numbers and number not in self._taken:
                self._numbers[network] = number
                self._taken.add(number)

    def _names(self, peers: AddressPeers) -> list[IPv4Network]:
        return [
            network
            for network in (peers.network, *peers.excepts)
            if network != EVERYWHERE and not any(network.subnet_of(pods) for pods in self._pods)
        ]

    def use(self, peers: AddressPeers) -> bool:
        """A rule begins to name these ranges; returns whether one of them is new."""
        new = False
        for network in self._names(peers):
            self._uses[network] = self._uses.get(network, 0) + 1
            if self._uses[network] == 1:
                new = True
                if network not in self._numbers:
                    self._numbers[network] = self._free(network)
        return new

    def leave(self, peers: AddressPeers) -> bool:
        """A rule no longer names these ranges; returns whether one of them is now unused."""
        gone = False
        for network in self._names(peers):
            self._uses[network] -= 1
            if not self._uses[network]:
                del self._uses[network]
                gone = True
        return gone

    def in_use(self) -> dict[IPv4Network, int]:
        """The ranges that rules name, with their numbers: what `ipcache` should hold."""
        return {network: self._numbers[network] for network in self._uses}

    def forget_unused(self) -> bool:
        """Drop the numbers of ranges that nothing names; only after `ipcache` has lost them."""
        unused = [network for network in self._numbers if network not in self._uses]
        for network in unused:
            self._taken.discard(self._numbers.pop(network))
        return bool(unused)

    def members(self, peers: AddressPeers) -> frozenset[int]:
        """The numbers that the rule means, the world's own where it takes in every address."""
        if any(peers.network.subnet_of(hole) for hole in peers.excepts):
            return frozenset()
        found = {
            number
            for network, number in self._numbers.items()
            if network.subnet_of(peers.network) and not any(network.subnet_of(h) for h in peers.excepts)
        }
        if peers.network == EVERYWHERE:
            found.add(int(Reserved.WORLD))
        return frozenset(found)

    def of(self, address: IPv4Address) -> int:
        """The number that an address outside of the cluster has: its narrowest range's, or the world's."""
        holding = [network for network in self._uses if address in network]
        if not holding:
            return int(Reserved.WORLD)
        return self._numbers[max(holding, key=lambda network: network.prefixlen)]

    def world(self) -> frozenset[int]:
        """All numbers that are outside of the cluster."""
        return frozenset({int(Reserved.WORLD), *self._numbers.values()})

    def _free(self, network: IPv4Network) -> int:
        number = stable_number(str(network)) % _SPAN + 1
        while LOCAL_SCOPE | number in self._taken:
            number = number % _SPAN + 1
        self._taken.add(LOCAL_SCOPE | number)
        return LOCAL_SCOPE | number


def contains(peers: AddressPeers, address: IPv4Network) -> bool:
    """Whether the range of one address is inside the rule's range and in no exception."""
    return address.subnet_of(peers.network) and not any(address.subnet_of(hole) for hole in peers.excepts)

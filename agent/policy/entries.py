"""Grants as the entries of a policy trie. Pure.

The trie's longest match decides within one identity, so an allowance under a denial must not be there at
all; a denial under an allowance is longer and wins by itself. What the exact identity and ANYBODY say is
joined by the program: a denial from either holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.policy.compile import Grant
from agent.policy.rules import Direction
from datapath.constants import Direction as DirectionNumber
from datapath.constants import Verdict
from datapath.tables import PolicyEntry, PolicyKey

ANY_PROTOCOL_PREFIX = 40
ANY_PORT_PREFIX = 48
_NUMBERS = {Direction.INGRESS: DirectionNumber.INGRESS, Direction.EGRESS: DirectionNumber.EGRESS}

Entries = dict[PolicyKey, PolicyEntry]
Place = tuple[int, int, int]  # prefix, protocol, port


def port_prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest aligned blocks that make up the ports `first` to `last`, as (port, bits)."""
    while first <= last:
        size = first & -first or 1 << 16
        while size > last - first + 1:
            size >>= 1
        yield first, 16 - (size.bit_length() - 1)
        first += size


def places(grant: Grant) -> Iterator[Place]:
    """Where in the trie the grant stands."""
    if grant.protocol == 0:
        yield ANY_PROTOCOL_PREFIX, 0, 0
        return
    for port, bits in port_prefixes(grant.first, grant.last):
        yield ANY_PORT_PREFIX + bits, grant.protocol, port


def covers(wide: Place, narrow: Place) -> bool:
    """Whether all that `narrow` matches, `wide` matches too."""
    prefix, protocol, port = wide
    if prefix > narrow[0]:
        return False
    if prefix <= ANY_PROTOCOL_PREFIX:
        return True
    if protocol != narrow[1]:
        return False
    shift = 16 - (prefix - ANY_PORT_PREFIX)
    return port >> shift == narrow[2] >> shift


def _above(place: Place) -> Iterator[Place]:
    """The places that cover `place`, itself included, widest first."""
    prefix, protocol, port = place
    yield ANY_PROTOCOL_PREFIX, 0, 0
    for bits in range(prefix - ANY_PORT_PREFIX + 1):
        shift = 16 - bits
        yield ANY_PORT_PREFIX + bits, protocol, port >> shift << shift


def entries(grants: Iterable[Grant]) -> Entries:
    """The whole content of an endpoint's policy trie."""
    allowed: dict[tuple[Direction, int, Place], int] = {}
    denied: dict[tuple[Direction, int, Place], int] = {}
    for grant in grants:
        into = denied if grant.deny else allowed
        for place in places(grant):
            at = (grant.direction, grant.identity, place)
            into[at] = min(grant.rule, into.get(at, grant.rule))
    found: Entries = {}
    for (direction, identity, place), rule in denied.items():
        found[_key(direction, identity, place)] = _entry(place, Verdict.DENY, rule)
    for (direction, identity, place), rule in allowed.items():
        if not any((direction, identity, above) in denied for above in _above(place)):
            found[_key(direction, identity, place)] = _entry(place, Verdict.ALLOW, rule)
    return found


def _key(direction: Direction, identity: int, place: Place) -> PolicyKey:
    prefix, protocol, port = place
    return PolicyKey(
        prefix=prefix, identity=identity, direction=int(_NUMBERS[direction]), protocol=protocol, port=port
    )


def _entry(place: Place, verdict: Verdict, rule: int) -> PolicyEntry:
    return PolicyEntry(rule=rule, verdict=int(verdict), specificity=place[0] - ANY_PROTOCOL_PREFIX)

"""Writing services into a node's maps, as the agent does."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
from collections.abc import Iterator, Sequence

from datapath import tables
from datapath.codec import Address
from datapath.constants import Scope, ServiceFlag
from tests.bpf.sandbox import Node

ANY_NODE = ipaddress.IPv6Address(0)
_ids = itertools.count(1000)


def backend_id(address: Address, port: int) -> int:
    return (int(address) << 16 | port) & 0xFFFFFFFF


@contextlib.contextmanager
def service(
    node: Node,
    address: Address,
    port: int,
    backends: Sequence[tuple[Address, int]],
    *,
    protocol: int = 6,
    scopes: Sequence[Scope] = (Scope.CLUSTER,),
    flags: ServiceFlag = ServiceFlag.NONE,
    affinity_seconds: int = 0,
    affinity: int = 0,
) -> Iterator[None]:
    """A service for the time of a block."""
    number = next(_ids)
    maps = node.maps
    keys = [tables.ServiceKey(address=address, port=port, protocol=protocol, scope=scope) for scope in scopes]
    slots = {}
    for slot, (target, target_port) in enumerate(backends):
        identifier = backend_id(target, target_port)
        key = tables.BackendKey(service=number, slot=slot)
        slots[key] = tables.Backend(address=target, port=target_port, id=identifier)
        maps.members.put(tables.MemberKey(service=number, backend=identifier), tables.Member(slot=slot))
    maps.backends.put_many(slots)
    value = tables.Service(
        id=number,
        count=len(backends),
        flags=flags,
        affinity=affinity or number,
        affinity_seconds=affinity_seconds,
    )
    for service_key in keys:
        maps.services.put(service_key, value)
    try:
        yield
    finally:
        maps.services.delete_many(keys)
        maps.backends.delete_many(slots)
        maps.members.delete_many(
            tables.MemberKey(service=number, backend=backend.id) for backend in slots.values()
        )

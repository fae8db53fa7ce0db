"""The reserved identities, with the numbers and names that Cilium gives them.

Numbers of pods run from 256 to 2^24 - 1, the 24 bits that the overlay carries. Numbers with bit 24 set
are local to a node (address ranges of its policies) and never travel.
"""

from __future__ import annotations

from enum import IntEnum

from agent.model.objects import Identity

FIRST_POD_IDENTITY = 256
LAST_POD_IDENTITY = (1 << 24) - 1
LOCAL_SCOPE = 1 << 24


class Reserved(IntEnum):
    """Identities that no label makes."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8

    @property
    def label(self) -> str:
        """The label of the identity, "reserved:remote-node" for instance."""
        return "reserved:" + self.name.lower().replace("_", "-")


RESERVED = {reserved.value: Identity(reserved.value, {reserved.label: ""}) for reserved in Reserved}


def travels(number: int) -> bool:
    """Whether another node may send this identity through the overlay."""
    return FIRST_POD_IDENTITY <= number <= LAST_POD_IDENTITY or number in (
        Reserved.REMOTE_NODE,
        Reserved.KUBE_APISERVER,
        Reserved.HEALTH,
        Reserved.INGRESS,
    )


def is_local(number: int) -> bool:
    """Whether the number means something on its own node only."""
    return bool(number & LOCAL_SCOPE)

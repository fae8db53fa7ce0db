"""Connection tracking from the agent's side: looking, and ending what belongs to dead endpoints."""

import time
from collections.abc import Iterator

from datapath.constants import ConntrackFlag
from datapath.maps.typed import TypedMap
from datapath.tables import ConntrackEntry, FlowKey

TCP = 6


class Conntrack(TypedMap[FlowKey, ConntrackEntry]):
    """The map `conntrack`."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, FlowKey, ConntrackEntry)

    def live(self) -> Iterator[tuple[FlowKey, ConntrackEntry]]:
        """Entries that have not expired."""
        now = time.monotonic_ns()
        return ((key, entry) for key, entry in self.items() if entry.expires >= now)

    def stale(self, revisions: dict[int, int]) -> list[FlowKey]:
        """Open TCP connections whose verdict is older than their endpoint's policy (id -> revision).

        These are to be nudged: the programs judge a connection again at its next packet, and an idle one
        has none.
        """
        done = ConntrackFlag.REVOKED | ConntrackFlag.RESET
        return [
            key
            for key, entry in self.live()
            if key.protocol == TCP
            and key.endpoint in revisions
            and entry.revision != revisions[key.endpoint]
            and not entry.flags & done
        ]

    def purge(self, endpoint: int) -> int:
        """Forget all connections of an endpoint id, so that it can be given again; how many there were."""
        keys = [key for key, _ in self.items() if key.endpoint == endpoint]
        self.delete_many(keys)
        return len(keys)

    def expire(self) -> int:
        """Delete what has expired; how many. Expired entries count for nothing, this only frees room."""
        now = time.monotonic_ns()
        keys = [key for key, entry in self.items() if entry.expires < now]
        self.delete_many(keys)
        return len(keys)

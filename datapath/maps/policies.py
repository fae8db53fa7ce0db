"""The policies of endpoints: each a trie that is replaced as a whole, never edited.

A new trie is filled while nobody sees it and then takes the old one's place in one step, so no packet meets
half of a policy. Only then the endpoint's revision moves, which makes the programs look again at
connections that they have allowed. Many endpoints are replaced by one system call: after each such call the
kernel waits until no program uses an old trie any more (some milliseconds), once and not once for each
endpoint.
"""

import os
from collections.abc import Mapping

from datapath import libbpf
from datapath.maps.spec import RULES, specs
from datapath.maps.typed import BATCH, TypedMap
from datapath.tables import EndpointId, PolicyEntry, PolicyKey, Revision

Rules = Mapping[PolicyKey, PolicyEntry]


class Policies:
    """The map `policies` and its companion `revisions`."""

    def __init__(self, fd: int, revisions: TypedMap[EndpointId, Revision]) -> None:
        self.fd = fd
        self._revisions = revisions

    def replace(self, policies: Mapping[int, Rules]) -> None:
        """Give endpoints (by id) new policies, all at once, and move their revisions.

        An empty policy denies everything.
        """
        inner: dict[int, int] = {}
        try:
            for endpoint, rules in policies.items():
                inner[endpoint] = self._make(rules)
            libbpf.map_update_many(
                self.fd,
                [
                    (EndpointId(id=endpoint).pack(), fd.to_bytes(4, "little"))
                    for endpoint, fd in inner.items()
                ],
            )
        finally:
            for fd in inner.values():
                os.close(fd)
        for endpoint in policies:
            self.touch(endpoint)

    def touch(self, endpoint: int) -> int:
        """Have the connections of an endpoint judged again; returns its new revision."""
        key = EndpointId(id=endpoint)
        revision = self._revisions.get(key) or Revision(revision=0)
        self._revisions.put(key, Revision(revision=revision.revision + 1))
        return revision.revision + 1

    def revision(self, endpoint: int) -> int:
        """How often the policy of an endpoint has been replaced."""
        revision = self._revisions.get(EndpointId(id=endpoint))
        return revision.revision if revision else 0

    def read(self, endpoint: int) -> dict[PolicyKey, PolicyEntry] | None:
        """The policy of an endpoint as the programs see it, None when it has none."""
        raw = libbpf.map_lookup(self.fd, EndpointId(id=endpoint).pack(), 4)
        if raw is None:
            return None
        rules = TypedMap(libbpf.map_by_id(int.from_bytes(raw, "little")), PolicyKey, PolicyEntry)
        try:
            return rules.read()
        finally:
            rules.close()

    def endpoints(self) -> set[int]:
        """Ids of the endpoints that have a policy."""
        return {EndpointId.unpack(raw).id for raw in libbpf.map_keys(self.fd, EndpointId.size())}

    def delete(self, endpoint: int) -> bool:
        """Take an endpoint's policy away: nothing passes to or from it any more."""
        return libbpf.map_delete(self.fd, EndpointId(id=endpoint).pack())

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self.fd)

    @staticmethod
    def _make(rules: Rules) -> int:
        spec = specs()[RULES]
        fd = libbpf.map_create(
            spec.kind, spec.name, spec.key_size, spec.value_size, max(len(rules), 1), spec.flags
        )
        packed = [(key.pack(), entry.pack()) for key, entry in rules.items()]
        try:
            for start in range(0, len(packed), BATCH):
                libbpf.map_update_many(fd, packed[start : start + BATCH])
        except OSError:
            os.close(fd)
            raise
        return fd

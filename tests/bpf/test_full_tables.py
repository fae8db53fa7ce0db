"""Tables that are full: nothing passes that policy has not seen, and the reason is counted.

The LRU maps of a node never refuse an entry: the kernel evicts. To see what the programs do when an entry is
refused all the same, they are loaded here, unchanged, on hashes of one entry.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from datapath import reasons
from datapath.constants import Place, Scope
from tests.bpf.counting import counted, events
from tests.bpf.fabric import Fabric, Pod
from tests.bpf.packets import DROP, frame_from, run, sent_by
from tests.bpf.sandbox import Sandbox
from tests.bpf.services import ANY_NODE, service

_TINY = """
import dataclasses, sys
from datapath.libbpf import BPF_F_NO_PREALLOC, MapType
from datapath.loader.__main__ import main
from datapath.maps.spec import specs
for name in ("conntrack", "fragments", "translations", "origins", "affinity"):
    specs()[name] = dataclasses.replace(
        specs()[name], kind=MapType.HASH, entries=1, flags=BPF_F_NO_PREALLOC
    )
sys.exit(main(["up", "--config", sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def tiny(sandbox: Sandbox) -> Iterator[Fabric]:
    """A node whose tables have room for one entry."""
    made = Fabric(sandbox, ["tiny"], loader=("python3", "-c", _TINY))
    yield made
    made.nodes[0].loader("down")
    made.close()


@pytest.fixture
def pair(tiny: Fabric) -> Iterator[tuple[Pod, Pod]]:
    client, server = tiny.pod(tiny.nodes[0], 1001), tiny.pod(tiny.nodes[0], 1002)
    yield client, server
    tiny.remove(client)
    tiny.remove(server)


def test_a_connection_that_cannot_be_remembered_is_refused(pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    for port in (1, 2):
        frame = frame_from(client, server.address, TCP(sport=4000 + port, dport=80, flags="S"))
        with counted(client.node, "CONNTRACK_FULL", Place.POD_EGRESS), events(client.node) as seen:
            assert sent_by(client, frame).action == DROP
        assert reasons.name_of(seen[-1].reason) == "conntrack-full"


def test_fragments_that_cannot_be_remembered_are_refused(pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    for number in (70, 71):
        first = UDP(sport=4000, dport=53, len=2000) / Raw(bytes(1000))
        sent_by(client, frame_from(client, server.address, first, id=number, flags="MF"))
    later = frame_from(client, server.address, Raw(bytes(900)), id=71, frag=126, proto=17)
    with counted(client.node, "FRAGMENT_UNKNOWN", Place.POD_EGRESS):
        assert sent_by(client, later).action == DROP


def test_a_translation_that_cannot_be_remembered_is_refused(tiny: Fabric, pair: tuple[Pod, Pod]) -> None:
    node = tiny.nodes[0]
    both = (Scope.CLUSTER, Scope.EXTERNAL)
    frame = Ether(src="02:fc:00:00:00:01", dst="02:fc:00:00:00:02") / IP(
        src="192.168.77.200", dst=str(node.address)
    )
    eth0 = node.namespace.index("eth0")
    with (
        service(node, ANY_NODE, 30080, [(pair[0].address, 8080)], scopes=both),
        counted(node, "TRANSLATION_FULL", Place.HOST),
    ):
        syn = TCP(sport=5557, dport=30080, flags="S")
        assert run(node, "host_ingress", frame / syn, ifindex=eth0).action == DROP

"""Nudging idle connections, so that a change of policy reaches them within a second.

The programs judge a connection again at its next packet. An idle one has none, so one is provoked: a bare TCP
acknowledgment with a sequence number outside the receiver's window is handed to the local end. TCP answers
it with an acknowledgment of its own (RFC 9293, 3.10.7.4), which carries the exact numbers of both
directions and passes pod_egress: allowed, it is a harmless duplicate; no longer allowed, the programs turn
it into a reset for each end.

The segment enters at the host's end of the veth with config.nudge_mark, by which pod_ingress lets it pass
without touching connection tracking. A pod cannot make one: marks do not survive the way out of a namespace.
"""

import random
import socket
import struct
from collections.abc import Iterable

from datapath.codec import Address
from datapath.constants import NUDGE_MARK
from datapath.tables import Endpoint, FlowKey

SO_MARK = 36
_ETH_IP = b"\x08\x00"
_ACK = 0x10


def _sum16(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(source: Address, destination: Address, ports: tuple[int, int], sequence: int) -> bytes:
    """An IPv4 packet with an empty TCP acknowledgment. ports: source, destination."""
    pseudo = source.packed + destination.packed + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
    tcp = struct.pack("!HHIIBBHHH", *ports, sequence, 0, 5 << 4, _ACK, 0, 0, 0)
    tcp = tcp[:16] + struct.pack("!H", _sum16(pseudo + tcp)) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 64, socket.IPPROTO_TCP, 0)
    ip += source.packed + destination.packed
    return ip[:10] + struct.pack("!H", _sum16(ip)) + ip[12:] + tcp


def nudge(connections: Iterable[tuple[FlowKey, Endpoint]], mark: int = NUDGE_MARK) -> int:
    """Provoke a packet from the local end of each TCP connection; how many segments were sent.

    Runs in the node's network namespace, with CAP_NET_RAW and CAP_NET_ADMIN. Connections that are not IPv4
    TCP are passed over; a device that is gone (its pod is ending) too.
    """
    sent = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        for key, endpoint in connections:
            if key.protocol != socket.IPPROTO_TCP or key.local.version != 4 or key.peer.version != 4:
                continue
            # Half the sequence space apart, so that one of the two is outside any window.
            first = random.getrandbits(32)
            for sequence in (first, (first + (1 << 31)) & 0xFFFFFFFF):
                packet = segment(key.peer, key.local, (key.peer_port, key.local_port), sequence)
                try:
                    name = socket.if_indextoname(endpoint.ifindex)
                    raw.sendto(endpoint.mac + endpoint.host_mac + _ETH_IP + packet, (name, 0))
                except OSError:
                    break
                sent += 1
    return sent

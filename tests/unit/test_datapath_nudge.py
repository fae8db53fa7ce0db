"""The segment that makes an idle connection speak."""

from __future__ import annotations

import ipaddress

from scapy.layers.inet import IP, TCP

from datapath.nudge import segment


def test_the_segment_is_an_empty_acknowledgment_with_right_checksums() -> None:
    raw = segment(
        ipaddress.ip_address("10.244.1.5"), ipaddress.ip_address("10.244.2.7"), (80, 40001), 0x12345678
    )
    packet = IP(raw)
    assert (packet.src, packet.dst, packet[TCP].sport, packet[TCP].dport) == (
        "10.244.1.5",
        "10.244.2.7",
        80,
        40001,
    )
    assert (packet[TCP].seq, str(packet[TCP].flags), len(raw)) == (0x12345678, "A", 40)
    again = packet.copy()
    del again.chksum, again[TCP].chksum
    again = IP(bytes(again))
    assert (again.chksum, again[TCP].chksum) == (packet.chksum, packet[TCP].chksum)

"""Packets by scapy, and running tc programs on them (BPF_PROG_RUN)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from datapath import libbpf
from tests.bpf.fabric import Pod
from tests.bpf.sandbox import Node

PASS, DROP, REDIRECT = 0, 2, 7


@dataclass(frozen=True)
class Outcome:
    """What a program did: its verdict, and the frame after it."""

    action: int
    frame: Packet


def mac_text(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in mac)


def run(
    node: Node,
    program: str,
    frame: Packet | bytes,
    *,
    ifindex: int,
    came_by: int | None = None,
    mark: int = 0,
) -> Outcome:
    """Run a program on one frame. ifindex: device of the hook; came_by: 0 for the node's own packets."""
    words = [0] * 17
    words[2] = mark
    words[9] = ifindex if came_by is None else came_by
    words[10] = ifindex
    fd = node.program(program)
    try:
        with node.namespace.entered():
            result = libbpf.program_run(fd, bytes(frame), struct.pack("=17I", *words))
    finally:
        os.close(fd)
    return Outcome(result.result, Ether(result.data))


def frame_from(pod: Pod, destination: object, payload: Packet, **ip: Any) -> Packet:
    """A frame as the pod would send it."""
    ethernet = Ether(src=mac_text(pod.mac), dst=mac_text(pod.host_mac))
    return ethernet / IP(**{"src": str(pod.address), "dst": str(destination), **ip}) / payload


def frame_to(pod: Pod, source: object, payload: Packet, **ip: Any) -> Packet:
    """A frame as the host's stack would send it to the pod."""
    ethernet = Ether(src=mac_text(pod.host_mac), dst=mac_text(pod.mac))
    return ethernet / IP(**{"src": str(source), "dst": str(pod.address), **ip}) / payload


def sent_by(pod: Pod, frame: Packet | bytes) -> Outcome:
    """Run pod_egress on a frame from the pod."""
    return run(pod.node, "pod_egress", frame, ifindex=pod.index)


def inside(frame: Packet) -> Packet:
    """The frame in a VXLAN frame."""
    header = VXLAN(bytes(frame[UDP].payload))
    assert (frame[UDP].dport, header.flags) == (8472, "Instance")
    found: Packet = header[Ether]
    return found


def checksums_hold(frame: Packet) -> bool:
    """The checksums of the frame are those that scapy computes for its content."""
    again = frame.copy()
    for layer in (IP, TCP, UDP):
        if layer in again:
            del again[layer].chksum
    again = Ether(bytes(again))
    return all(again[layer].chksum == frame[layer].chksum for layer in (IP, TCP, UDP) if layer in frame)


def payload(size: int) -> Packet:
    return Raw(bytes(range(256)) * (size // 256) + bytes(size % 256))

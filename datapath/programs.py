"""The programs: name, hook, and where the loader pins them. One C file in `src/` for each."""

import enum
from dataclasses import dataclass
from pathlib import Path

from datapath.constants import Continuation
from datapath.libbpf import AttachType, ProgramType

SOURCES = Path(__file__).parent / "src"
INCLUDE = Path(__file__).parent / "include"


class Target(enum.Enum):
    """What a program is attached to."""

    POD = "pod"
    OVERLAY = "overlay"
    HOST = "host"
    CGROUP = "cgroup"
    CONTINUATION = "continuation"
    SOCKETS = "sockets"  # the map of accelerated sockets
    SENDER = "sender"  # reached through the map `senders`
    READER = "reader"  # reached through the map `readers`
    TRACE = "trace"
    ITERATOR = "iterator"
    LEAVING = "leaving"


_TYPES = {
    AttachType.CGROUP_SOCK_OPS: ProgramType.SOCK_OPS,
    AttachType.CGROUP_SETSOCKOPT: ProgramType.CGROUP_SOCKOPT,
    AttachType.SK_MSG_VERDICT: ProgramType.SK_MSG,
    AttachType.SK_SKB_VERDICT: ProgramType.SK_SKB,
    AttachType.TRACE_RAW_TP: ProgramType.TRACING,
    AttachType.TRACE_ITER: ProgramType.TRACING,
}


@dataclass(frozen=True, slots=True)
class Program:
    """attach: the hook, None for what is reached by a tail call through `slot`. hook: the kernel's name of
    what is traced or iterated.
    """

    name: str
    target: Target
    attach: AttachType | None
    slot: Continuation | None = None
    hook: str = ""

    @property
    def source(self) -> Path:
        """Its C file."""
        return SOURCES / f"{self.name}.c"

    @property
    def is_cgroup(self) -> bool:
        """Attached to the node's cgroup."""
        return self.target is Target.CGROUP

    @property
    def type(self) -> ProgramType:
        """What the kernel loads it as."""
        if self.target is Target.SENDER:
            return ProgramType.SK_MSG
        if self.attach is None:
            return ProgramType.SCHED_CLS
        packets = self.attach in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS)
        return _TYPES.get(self.attach, ProgramType.SCHED_CLS if packets else ProgramType.CGROUP_SOCK_ADDR)


PROGRAMS = (
    Program("pod_egress", Target.POD, AttachType.TCX_INGRESS),
    Program("pod_ingress", Target.POD, AttachType.TCX_EGRESS),
    Program("pod_reset", Target.CONTINUATION, None, Continuation.RESET),
    Program("pod_service", Target.CONTINUATION, None, Continuation.SERVICE),
    Program("overlay_ingress", Target.OVERLAY, AttachType.TCX_INGRESS),
    Program("overlay_egress", Target.OVERLAY, AttachType.TCX_EGRESS),
    Program("host_ingress", Target.HOST, AttachType.TCX_INGRESS),
    Program("host_egress", Target.HOST, AttachType.TCX_EGRESS),
    Program("sock_connect4", Target.CGROUP, AttachType.INET4_CONNECT),
    Program("sock_connect6", Target.CGROUP, AttachType.INET6_CONNECT),
    Program("sock_sendmsg4", Target.CGROUP, AttachType.UDP4_SENDMSG),
    Program("sock_sendmsg6", Target.CGROUP, AttachType.UDP6_SENDMSG),
    Program("sock_recvmsg4", Target.CGROUP, AttachType.UDP4_RECVMSG),
    Program("sock_recvmsg6", Target.CGROUP, AttachType.UDP6_RECVMSG),
    Program("sock_peername4", Target.CGROUP, AttachType.INET4_GETPEERNAME),
    Program("sock_peername6", Target.CGROUP, AttachType.INET6_GETPEERNAME),
    Program("sock_pair", Target.CGROUP, AttachType.CGROUP_SOCK_OPS),
    Program("sock_setoption", Target.CGROUP, AttachType.CGROUP_SETSOCKOPT),
    Program("message_stub", Target.SOCKETS, AttachType.SK_MSG_VERDICT),
    Program("stream_verdict", Target.SOCKETS, AttachType.SK_SKB_VERDICT),
    Program("message_send", Target.SENDER, None),
    Program("receive_stub", Target.TRACE, AttachType.TRACE_RAW_TP, hook="sock_recv_length"),
    Program("receive_count", Target.READER, AttachType.TRACE_RAW_TP, hook="sock_recv_length"),
    Program("list_states", Target.ITERATOR, AttachType.TRACE_ITER, hook="bpf_sk_storage_map"),
    Program("leave", Target.LEAVING, AttachType.TRACE_ITER, hook="tcp"),
)


def programs_for(target: Target) -> list[Program]:
    """The programs of one kind of target."""
    return [program for program in PROGRAMS if program.target is target]


def pin_of(pins: Path, name: str) -> Path:
    """Where a program is pinned."""
    return pins / "programs" / name

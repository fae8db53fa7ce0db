"""The programs: name, hook, and where the loader pins them. One C file in `src/` for each."""

import enum
from dataclasses import dataclass
from pathlib import Path

from datapath.constants import Continuation
from datapath.libbpf import AttachType

SOURCES = Path(__file__).parent / "src"
INCLUDE = Path(__file__).parent / "include"


class Target(enum.Enum):
    """What a program is attached to."""

    POD = "pod"
    OVERLAY = "overlay"
    HOST = "host"
    CGROUP = "cgroup"
    CONTINUATION = "continuation"


@dataclass(frozen=True, slots=True)
class Program:
    """attach: the hook, None for what is reached by a tail call through `slot`."""

    name: str
    target: Target
    attach: AttachType | None
    slot: Continuation | None = None

    @property
    def source(self) -> Path:
        """Its C file."""
        return SOURCES / f"{self.name}.c"

    @property
    def is_socket(self) -> bool:
        """A program for sockets (cgroup) rather than for packets (tc)."""
        return self.target is Target.CGROUP


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
)


def programs_for(target: Target) -> list[Program]:
    """The programs of one kind of target."""
    return [program for program in PROGRAMS if program.target is target]


def pin_of(pins: Path, name: str) -> Path:
    """Where a program is pinned."""
    return pins / "programs" / name

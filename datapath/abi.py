"""Numbers of the kernel's BPF interface."""

import enum

BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
BPF_F_NO_PREALLOC = 1
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4
BPF_F_CLONE = 512


class MapType(enum.IntEnum):
    """Map types, numbers of the kernel's ABI."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    SOCKHASH = 18
    SK_STORAGE = 24
    RINGBUF = 27


class AttachType(enum.IntEnum):
    """Attach types, numbers of the kernel's ABI."""

    CGROUP_SOCK_OPS = 3
    SK_MSG_VERDICT = 7
    INET4_CONNECT = 10
    INET6_CONNECT = 11
    UDP4_SENDMSG = 14
    UDP6_SENDMSG = 15
    UDP4_RECVMSG = 19
    UDP6_RECVMSG = 20
    CGROUP_SETSOCKOPT = 22
    TRACE_RAW_TP = 23
    TRACE_ITER = 28
    INET4_GETPEERNAME = 29
    INET6_GETPEERNAME = 30
    SK_SKB_VERDICT = 38
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class ProgramType(enum.IntEnum):
    """Program types, numbers of the kernel's ABI."""

    SCHED_CLS = 3
    SOCK_OPS = 13
    SK_SKB = 14
    SK_MSG = 16
    CGROUP_SOCK_ADDR = 18
    CGROUP_SOCKOPT = 25
    TRACING = 26

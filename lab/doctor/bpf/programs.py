"""The programs, maps and helpers that Underpass's datapath stands on, each as the smallest that loads.

Source of the numbers: the kernel's <linux/bpf.h>.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab.doctor.bpf.assembler import (
    R1,
    R2,
    R3,
    R4,
    answer,
    call,
    load_pointer,
    map_pointer,
    put,
    skip_if_zero,
    zero_on_stack,
)

SCHED_CLS, XDP, SOCK_OPS, SK_SKB, SK_MSG = 3, 6, 13, 14, 16
CGROUP_SOCK_ADDR, CGROUP_SOCKOPT, TRACING, SK_LOOKUP = 18, 25, 26, 30

ATTACH_SOCK_OPS = 3
ATTACH_TRACE_RAW_TP, ATTACH_TRACE_ITER = 23, 28

NO_PREALLOC = 1
PAGE = 4096

#: `struct bpf_sock_addr`, `struct bpf_sock_ops`: where the pointer to the socket is.
_SOCKET_OF_ADDR, _SOCKET_OF_OPS = 64, 184


@dataclass(frozen=True)
class Kind:
    """A program type at an attach point. `verdict`: a return value that the verifier takes."""

    name: str
    type: int
    attach: int = 0
    verdict: int = 0
    required: bool = True


KINDS = (
    Kind("sched_cls", SCHED_CLS),
    Kind("sock_ops", SOCK_OPS, ATTACH_SOCK_OPS, 1),
    Kind("sk_msg", SK_MSG, 7, 1),
    Kind("sk_skb/parser", SK_SKB, 4),
    Kind("sk_skb/verdict", SK_SKB, 5, 1),
    Kind("cgroup/connect4", CGROUP_SOCK_ADDR, 10, 1),
    Kind("cgroup/connect6", CGROUP_SOCK_ADDR, 11, 1),
    Kind("cgroup/sendmsg4", CGROUP_SOCK_ADDR, 14, 1),
    Kind("cgroup/sendmsg6", CGROUP_SOCK_ADDR, 15, 1),
    Kind("cgroup/recvmsg4", CGROUP_SOCK_ADDR, 19, 1),
    Kind("cgroup/recvmsg6", CGROUP_SOCK_ADDR, 20, 1),
    Kind("cgroup/getpeername4", CGROUP_SOCK_ADDR, 29, 1),
    Kind("cgroup/getpeername6", CGROUP_SOCK_ADDR, 30, 1),
    Kind("cgroup/getsockopt", CGROUP_SOCKOPT, 21, 1),
    Kind("cgroup/setsockopt", CGROUP_SOCKOPT, 22, 1),
    Kind("xdp", XDP, 37, 2, required=False),
    Kind("sk_lookup", SK_LOOKUP, 36, 1, required=False),
)


@dataclass(frozen=True)
class Map:
    """A map type with sizes that it takes. `inner`: it holds maps. `typed`: it wants type information."""

    name: str
    type: int
    key: int
    value: int
    entries: int
    flags: int = 0
    inner: bool = False
    typed: bool = False


MAPS = (
    Map("hash", 1, 4, 4, 8),
    Map("array", 2, 4, 4, 8),
    Map("prog_array", 3, 4, 4, 8),
    Map("percpu_array", 6, 4, 8, 8),
    Map("lru_hash", 9, 4, 4, 8),
    Map("lpm_trie", 11, 8, 4, 8, NO_PREALLOC),
    Map("array_of_maps", 12, 4, 4, 8, inner=True),
    Map("hash_of_maps", 13, 4, 4, 8, inner=True),
    Map("sockmap", 15, 4, 4, 8),
    Map("sockhash", 18, 8, 4, 8),
    Map("sk_storage", 24, 4, 4, 0, NO_PREALLOC, typed=True),
    Map("ringbuf", 27, 0, 0, PAGE),
)

#: Gets the descriptors of the maps by name; gives the body of a program.
Body = Callable[[Mapping[str, int]], bytes]


@dataclass(frozen=True)
class Helper:
    """A helper as a program of `kind` (a `Kind.name`) calls it. `maps`: those that the call names."""

    name: str
    kind: str
    body: Body
    maps: tuple[str, ...] = ()


def _plain(number: int, *arguments: bytes) -> Body:
    """Call helper `number` with registers set by `arguments`; r1 is the context before they run."""
    return lambda _: b"".join(arguments) + call(number)


def _keyed(number: int, map_name: str) -> Body:
    """helper(context, map, &key, 0)"""
    return lambda maps: zero_on_stack(R3, 8) + map_pointer(R2, maps[map_name]) + put(R4, 0) + call(number)


def _storage(number: int, offset: int) -> Body:
    """helper(map, the context's socket, NULL, create), where there is a socket"""
    return lambda maps: (
        load_pointer(R2, R1, offset)
        + skip_if_zero(R2, 5)
        + map_pointer(R1, maps["sk_storage"])
        + put(R3, 0)
        + put(R4, 1)
        + call(number)
    )


def _into_buffer(number: int, size: int) -> Body:
    """helper(context, buffer of zeros, size, 0)"""
    return _plain(number, zero_on_stack(R2, size), put(R3, size), put(R4, 0))


HELPERS = (
    Helper(
        "map_lookup_elem",
        "sched_cls",
        lambda maps: zero_on_stack(R2, 8) + map_pointer(R1, maps["hash"]) + call(1),
        ("hash",),
    ),
    Helper(
        "tail_call",
        "sk_msg",
        lambda maps: map_pointer(R2, maps["prog_array"]) + put(R3, 0) + call(12),
        ("prog_array",),
    ),
    Helper("skb_get_tunnel_key", "sched_cls", _into_buffer(20, 24)),
    Helper("skb_set_tunnel_key", "sched_cls", _into_buffer(21, 24)),
    Helper("redirect", "sched_cls", _plain(23, put(R1, 1), put(R2, 0))),
    Helper("redirect_neigh", "sched_cls", _plain(152, put(R1, 1), put(R2, 0), put(R3, 0), put(R4, 0))),
    Helper("redirect_peer", "sched_cls", _plain(155, put(R1, 1), put(R2, 0))),
    Helper("sock_ops_cb_flags_set", "sock_ops", _plain(59, put(R2, 0))),
    Helper("sock_hash_update", "sock_ops", _keyed(70, "sockhash"), ("sockhash",)),
    Helper("msg_redirect_hash", "sk_msg", _keyed(71, "sockhash"), ("sockhash",)),
    Helper("msg_apply_bytes", "sk_msg", _plain(61, put(R2, 1))),
    Helper("msg_pull_data", "sk_msg", _plain(63, put(R2, 0), put(R3, 1), put(R4, 0))),
    Helper("msg_push_data", "sk_msg", _plain(90, put(R2, 0), put(R3, 1), put(R4, 0))),
    Helper("sk_redirect_hash", "sk_skb/verdict", _keyed(72, "sockhash"), ("sockhash",)),
    Helper("sk_storage_get", "cgroup/connect4", _storage(107, _SOCKET_OF_ADDR), ("sk_storage",)),
    Helper("sk_storage_get", "sock_ops", _storage(107, _SOCKET_OF_OPS), ("sk_storage",)),
    Helper("get_netns_cookie", "cgroup/connect4", _plain(122)),
    Helper("get_netns_cookie", "sock_ops", _plain(122)),
    Helper("get_netns_cookie", "sk_msg", _plain(122)),
    Helper("get_socket_cookie", "cgroup/connect4", _plain(46)),
    Helper("set_retval", "cgroup/connect4", _plain(187, put(R1, -111))),
    Helper("load_hdr_opt", "sock_ops", _into_buffer(142, 8)),
    Helper("store_hdr_opt", "sock_ops", _into_buffer(143, 8)),
    Helper("reserve_hdr_opt", "sock_ops", _plain(144, put(R2, 8), put(R3, 0))),
    Helper(
        "ringbuf_output",
        "sched_cls",
        lambda maps: (
            zero_on_stack(R2, 8) + map_pointer(R1, maps["ringbuf"]) + put(R3, 8) + put(R4, 0) + call(130)
        ),
        ("ringbuf",),
    ),
)

_BY_NAME = {kind.name: kind for kind in KINDS}


def smallest(kind: Kind) -> bytes:
    """A program of `kind` that does nothing."""
    return answer(kind.verdict)


def calling(helper: Helper, maps: Mapping[str, int]) -> tuple[Kind, bytes]:
    """The program that calls `helper`, and its kind."""
    kind = _BY_NAME[helper.kind]
    return kind, helper.body(maps) + answer(kind.verdict)

"""Does socket redirect work on this node? Found out with one connection, in a namespace made for it.

The programs hang at the node's own control group; in nested nodes a wrong one means that they never run,
or run for others, and nothing else would show it. So the agent makes a network namespace, makes it known to
the programs as that of a pod with a sidecar (whose connections within itself are accelerated, and concern
no policy), and sends one message each way over loopback.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pyroute2 import IPRoute

from datapath.constants import NamespaceFlag
from datapath.links import SO_NETNS_COOKIE
from datapath.maps import Maps
from datapath.maps.redirect import RedirectConnection
from datapath.tables import Namespace, NamespaceKey

#: No pod ever has it (`agent.ipam.LAST_ENDPOINT`).
ENDPOINT = 65535
SECONDS = 5.0
ROUNDS = 2
MESSAGE = b"from socket to socket"
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Outcome:
    """`works`: None where redirect is switched off. `detail` says what was seen."""

    works: bool | None
    detail: str

    def to_json(self) -> dict[str, object]:
        return {"works": self.works, "detail": self.detail}


NOT_YET = Outcome(None, "not tried yet")


def run(maps: Maps, enabled: bool) -> Outcome:
    """Try it. Never raises: a fault is an outcome, too."""
    if not enabled:
        return Outcome(None, "socket redirect is switched off on this node")
    found: list[Outcome] = []

    def body() -> None:
        try:
            found.append(_try(maps))
        except Exception as fault:
            found.append(Outcome(False, f"the test itself failed: {fault}"))

    # A thread may leave its network namespace, and takes the new one with it when it ends.
    thread = threading.Thread(target=body, name="redirect-self-test", daemon=True)
    thread.start()
    thread.join(4 * SECONDS)
    return found[0] if found else Outcome(False, "the test did not end")


def _try(maps: Maps) -> Outcome:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")
    with _known(maps), _pair() as (client, server):
        port = client.getsockname()[1]
        for _ in range(ROUNDS):
            for sender, receiver in ((client, server), (server, client)):
                sender.sendall(MESSAGE)
                if receiver.recv(len(MESSAGE)) != MESSAGE:
                    return Outcome(False, "a message arrived changed")
        return judge([one for one in maps.redirect.connections() if one.client_port == port])


def judge(found: list[RedirectConnection]) -> Outcome:
    """What the datapath says of the test's connection."""
    one = next((each for each in found if each.client_endpoint in (ENDPOINT, 0)), None)
    if one is None:
        return Outcome(False, "the programs did not see the connection: they hang at another control group")
    if not one.accelerated:
        reason = f"{one.reason.name}: {one.reason.meaning}" if one.reason else "no reason given"
        return Outcome(False, f"the connection was not accelerated: {reason}")
    redirected = min(one.from_client.messages, one.from_server.messages)
    if not redirected:
        return Outcome(False, "the connection was accelerated, and its messages went by TCP")
    if one.from_client.unread or one.from_server.unread:
        return Outcome(False, "bytes that were read are not counted as read")
    return Outcome(True, f"{redirected} messages each way went from socket to socket")


@contextlib.contextmanager
def _known(maps: Maps) -> Iterator[None]:
    """Make the thread's namespace one of a pod with a sidecar, for the time of the test."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        (cookie,) = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
    key = NamespaceKey(cookie=cookie)
    maps.namespaces.put(key, Namespace(endpoint=ENDPOINT, flags=NamespaceFlag.SIDECAR))
    try:
        yield
    finally:
        maps.namespaces.delete(key)


@contextlib.contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection over loopback."""
    with socket.socket() as listener, socket.socket() as client:
        deadline = time.monotonic() + SECONDS
        for one in (listener, client):
            one.settimeout(SECONDS)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            yield client, server

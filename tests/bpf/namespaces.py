"""Network namespaces of the tests: made, entered for a moment, and gone with their last descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator

from pyroute2 import IPRoute

CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71
SYS_SETRESUID = 117  # on x86-64
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Inside, the calling thread's real user is `uid`; what it may do is as before."""
    # The system call itself: the C library's would change all threads.
    _call("syscall", SYS_SETRESUID, uid, -1, -1)
    try:
        yield
    finally:
        _call("syscall", SYS_SETRESUID, 0, -1, -1)


class Namespace:
    """One network namespace. `entered()` moves the calling thread into it; sockets made there stay there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def make(cls) -> Namespace:
        """A new, empty namespace with its loopback up."""
        made: list[int] = []

        def body() -> None:
            _call("unshare", CLONE_NEWNET)
            made.append(os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        namespace = cls(made[0])
        with namespace.netlink() as netlink:
            netlink.link("set", index=1, state="up")
        return namespace

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside, the calling thread is in this namespace."""
        here = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            _call("setns", self.descriptor, CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", here, CLONE_NEWNET)
        finally:
            os.close(here)

    @contextlib.contextmanager
    def netlink(self) -> Iterator[IPRoute]:
        """A netlink socket of this namespace."""
        with self.entered(), IPRoute() as netlink:
            yield netlink

    def index(self, name: str) -> int:
        """Index of a device."""
        with self.entered():
            return socket.if_nametoindex(name)

    def cookie(self) -> int:
        """The namespace's cookie, as programs see it."""
        with self.socket(socket.SOCK_DGRAM) as probe:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")

    def socket(self, kind: int, family: int = socket.AF_INET, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, with a timeout of 5 s."""
        with self.entered():
            made = socket.socket(family, kind, protocol)
        made.settimeout(5)
        return made

    def write_sysctl(self, name: str, value: str) -> None:
        """Set a network sysctl, its path below /proc/sys/net."""
        with self.entered():
            # /proc/sys/net follows the namespace of the thread that opens it.
            descriptor = os.open(f"/proc/thread-self/../../../sys/net/{name}", os.O_WRONLY)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)

    def close(self) -> None:
        os.close(self.descriptor)

"""Real connections between namespaces."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from datapath.codec import Address
from tests.bpf.fabric import Pod
from tests.bpf.namespaces import Namespace


@dataclass
class Connection:
    """Both ends of an established TCP connection."""

    client: socket.socket
    server: socket.socket

    def echo(self, data: bytes = b"ping") -> None:
        """One request and its answer."""
        self.client.sendall(data)
        assert receive(self.server, len(data)) == data
        self.server.sendall(data)
        assert receive(self.client, len(data)) == data


def receive(end: socket.socket, size: int) -> bytes:
    """Exactly so many bytes, fewer at the end of the stream."""
    data = b""
    while len(data) < size:
        more = end.recv(size - len(data))
        if not more:
            break
        data += more
    return data


@contextlib.contextmanager
def listening(
    namespace: Namespace, address: Address | str, port: int, kind: int = socket.SOCK_STREAM
) -> Iterator[socket.socket]:
    """A socket that waits for connections or datagrams."""
    made = namespace.socket(kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(address), port))
    if kind == socket.SOCK_STREAM:
        made.listen(64)
    with made:
        yield made


@contextlib.contextmanager
def connected(
    namespace: Namespace, server: Pod | Namespace, address: Address | str, port: int = 80
) -> Iterator[Connection]:
    """An established connection from a namespace to a pod (or to an address in a namespace)."""
    home = server.namespace if isinstance(server, Pod) else server
    with listening(home, address, port) as listener, namespace.socket(socket.SOCK_STREAM) as client:
        client.connect((str(address), port))
        accepted, _ = listener.accept()
        accepted.settimeout(5)
        with accepted:
            yield Connection(client, accepted)


def refused_error(namespace: Namespace, address: Address | str, port: int, timeout: float = 5) -> OSError:
    """The error of a connect that must fail."""
    with namespace.socket(socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            client.connect((str(address), port))
        except OSError as error:
            return error
    raise AssertionError(f"{address}:{port} was reached")


class Echo(threading.Thread):
    """A server in the background: TCP, one answer for each connection: its name and the client's address."""

    def __init__(self, namespace: Namespace, address: Address | str, port: int, name: str) -> None:
        super().__init__(daemon=True, name=name)
        self._listener = namespace.socket(socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((str(address), port))
        self._listener.listen(256)
        self._listener.settimeout(None)
        self.start()

    def run(self) -> None:
        while True:
            try:
                end, peer = self._listener.accept()
            except OSError:
                return
            # A client that only wanted to connect is gone already, perhaps: the next one is to be served.
            with end, contextlib.suppress(ConnectionError):
                end.sendall(f"{self.name} {peer[0]}\n".encode())

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(5)


def ask(namespace: Namespace, address: Address | str, port: int) -> tuple[str, str]:
    """Connect to an `Echo`: its name, and the client's address as it saw it."""
    with namespace.socket(socket.SOCK_STREAM) as client:
        client.connect((str(address), port))
        answer = client.makefile().readline().split()
    return answer[0], answer[1]

"""A UNIX socket of the agent's: one request a connection, served by a few threads."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LARGEST = 4 << 20
BACKLOG = 512


class Listener:
    """Hands each connection to `serve`, which owns and closes it. The socket is root's alone."""

    def __init__(self, path: Path, workers: int, name: str, serve: Callable[[socket.socket], None]) -> None:
        """`workers` connections are served at once, the others wait; `name` is that of the threads."""
        self._path = path
        self._name = name
        self._serve = serve
        self._socket: socket.socket | None = None
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    def start(self) -> None:
        """Listen. An old socket of ours is replaced without a moment in which nothing is there."""
        self._socket = listen(self._path)
        threading.Thread(target=self._accept, name=f"{self._name}-accept", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections and finish those under way."""
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._pool.shutdown(wait=True)

    def _accept(self) -> None:
        assert self._socket
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            try:
                self._pool.submit(self._serve, connection)
            except RuntimeError:  # stopping
                connection.close()
                return


def listen(path: Path) -> socket.socket:
    """A listening UNIX socket at `path`, mode 0600 from its first moment, that replaces an older one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(fresh))
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    fresh.rename(path)
    return listener


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other end says that it is done. Raises OSError, also when it is too much."""
    parts: list[bytes] = []
    size = 0
    while part := connection.recv(65536):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise OSError("the request is too large")
    return b"".join(parts)

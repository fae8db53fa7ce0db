"""The agent's end of the plugin's socket: one request a connection, bounded threads, never a lost answer."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from agent.cni.spec import CniError, Code, Request, parse_request, version_in

LARGEST = 4 << 20
READ_SECONDS = 10.0
WORKERS = 16


class Operations(Protocol):
    """What the server asks of the agent. Each may raise CniError; the answers are printed as JSON."""

    def add(self, request: Request) -> dict[str, Any]: ...

    def delete(self, request: Request) -> None: ...

    def check(self, request: Request) -> None: ...

    def collect(self, request: Request) -> None: ...

    def status(self, request: Request) -> None: ...


Observe = Callable[[str, float, str], None]


class CniServer:
    """Serves the plugin. The socket is root's alone: whoever can speak to it can move addresses."""

    def __init__(
        self, path: Path, operations: Operations, log: Callable[..., None], observe: Observe
    ) -> None:
        """`observe(command, seconds, outcome)` hears of each finished request."""
        self._path = path
        self._operations = operations
        self._log = log
        self._observe = observe
        self._socket: socket.socket | None = None
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="cni")

    def start(self) -> None:
        """Listen. An old socket of ours is replaced without a moment in which nothing is there."""
        self._socket = listen(self._path)
        threading.Thread(target=self._accept, name="cni-accept", daemon=True).start()

    def stop(self) -> None:
        """Take no more requests and finish those under way."""
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

    def _serve(self, connection: socket.socket) -> None:
        began = time.monotonic()
        with connection:
            try:
                connection.settimeout(READ_SECONDS)
                raw = read_all(connection)
            except OSError as fault:
                self._log("warning", "cni request not read", fault=str(fault))
                return
            command, status, answer = self._answer(raw)
            with contextlib.suppress(OSError):  # the plugin was killed: the runtime will send a DEL
                connection.sendall(f"{status}\n".encode() + answer)
        self._observe(command, time.monotonic() - began, "ok" if status == 0 else "error")

    def _answer(self, raw: bytes) -> tuple[str, int, bytes]:
        parts = raw.split(b"\0", 6)
        if len(parts) != 7:
            return "", 1, _error(CniError(Code.DECODING_FAILURE, "not a request of the plugin"), b"")
        command = parts[0].decode(errors="replace")
        config = parts[6]
        try:
            request = parse_request([part.decode(errors="replace") for part in parts[:6]], config)
            result = self._dispatch(request)
            return command, 0, json.dumps(result).encode() if result is not None else b""
        except CniError as fault:
            level = "info" if fault.code == Code.TRY_AGAIN_LATER else "warning"
            self._log(level, "cni request refused", command=command, code=int(fault.code), fault=str(fault))
            return command, 1, _error(fault, config)
        except OSError as fault:
            self._log("error", "cni request failed", command=command, fault=repr(fault), exc_info=True)
            return command, 1, _error(CniError(Code.IO_FAILURE, "input or output failed", str(fault)), config)
        except Exception as fault:  # a fault of ours must still be an answer
            self._log("error", "cni request failed", command=command, fault=repr(fault), exc_info=True)
            return command, 1, _error(CniError(Code.INTERNAL, "internal fault", repr(fault)), config)

    def _dispatch(self, request: Request) -> dict[str, Any] | None:
        if request.command == "ADD":
            return self._operations.add(request)
        if request.command == "DEL":
            self._operations.delete(request)
        elif request.command == "CHECK":
            self._operations.check(request)
        elif request.command == "GC":
            self._operations.collect(request)
        elif request.command == "STATUS":
            self._operations.status(request)
        return None


def _error(fault: CniError, config: bytes) -> bytes:
    return json.dumps(fault.to_json(version_in(config))).encode()


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
    listener.listen(512)
    fresh.rename(path)
    return listener


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])


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

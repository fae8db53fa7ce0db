"""The agent's end of the plugin's socket: one request a connection, bounded threads, never a lost answer."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from agent.cni.spec import CniError, Code, Request, parse_request, version_in
from agent.listener import Listener, read_all

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
        self._operations = operations
        self._log = log
        self._observe = observe
        self._listener = Listener(path, WORKERS, "cni", self._serve)
        self.start = self._listener.start
        self.stop = self._listener.stop

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

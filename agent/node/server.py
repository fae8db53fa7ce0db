"""The agent's end of the node command's socket: one question a connection, answered as JSON."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.listener import Listener, read_all
from agent.node.answers import AnswerError

READ_SECONDS = 5.0
WORKERS = 4
MOST_WATCHERS = 8
# Flows that a slow reader has not taken are dropped and counted, never waited for.
WATCHER_QUEUE = 4096


class Flows:
    """Hands each flow event to everybody who watches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: list[queue.Queue[dict[str, Any]]] = []
        self.lost = 0

    @property
    def watched(self) -> bool:
        """Whether anybody watches: if not, events need not be put into words."""
        return bool(self._watchers)

    def publish(self, flow: dict[str, Any]) -> None:
        with self._lock:
            for watcher in self._watchers:
                try:
                    watcher.put_nowait(flow)
                except queue.Full:
                    self.lost += 1

    def watch(self) -> queue.Queue[dict[str, Any]] | None:
        """A queue of flows from now on; None when too many watch already."""
        with self._lock:
            if len(self._watchers) >= MOST_WATCHERS:
                return None
            watcher: queue.Queue[dict[str, Any]] = queue.Queue(WATCHER_QUEUE)
            self._watchers.append(watcher)
            return watcher

    def leave(self, watcher: queue.Queue[dict[str, Any]]) -> None:
        with self._lock:
            self._watchers.remove(watcher)


class NodeServer:
    """Serves the node command. The socket is root's alone."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[str, Mapping[str, Any]], Any],
        flows: Flows,
        log: Callable[..., None],
    ) -> None:
        self._answer = answer
        self._flows = flows
        self._log = log
        self._listener = Listener(path, WORKERS, "node", self._serve)
        self.start = self._listener.start
        self.stop = self._listener.stop

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(READ_SECONDS)
            question = json.loads(read_all(connection))
            command, arguments = str(question["command"]), dict(question.get("arguments") or {})
        except (OSError, ValueError, KeyError, TypeError) as fault:
            self._reply(connection, {"error": f"not a question: {fault}"})
            return
        if command == "monitor":
            # Watching may take for ever: not on the pool's time.
            threading.Thread(target=self._monitor, args=(connection,), name="monitor", daemon=True).start()
            return
        try:
            self._reply(connection, {"answer": self._answer(command, arguments)})
        except (AnswerError, ValueError) as fault:
            self._reply(connection, {"error": str(fault)})
        except Exception as fault:
            self._log("error", "question failed", command=command, fault=repr(fault), exc_info=True)
            self._reply(connection, {"error": f"the agent failed: {fault!r}"})

    def _reply(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _monitor(self, connection: socket.socket) -> None:
        watcher = self._flows.watch()
        if watcher is None:
            self._reply(connection, {"error": f"{MOST_WATCHERS} monitors run already"})
            return
        try:
            with connection, contextlib.suppress(OSError):
                while True:
                    try:
                        flow = watcher.get(timeout=1.0)
                    except queue.Empty:
                        connection.sendall(b"\n")  # finds out whether anybody is still there
                        continue
                    connection.sendall(json.dumps({"answer": flow}).encode() + b"\n")
        finally:
            self._flows.leave(watcher)

"""One-way streams between two pods, by a sender in a process of its own, and senders that leave redirect."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from agent.redirect.choice import Limits
from agent.redirect.leaver import Leaver
from datapath import reasons
from datapath.constants import DepartureStep, Side, Stage
from datapath.redirect_tables import SocketKey
from tests.bpf.counting import wait_for
from tests.bpf.fabric import Pod
from tests.bpf.redirecting import find
from tests.bpf.sandbox import Node
from tests.bpf.talking import Connection

#: As the agent's own, but for a machine that is busy: less is a stream here, and a look is not waited for.
LIMITS = Limits(looks=2, small_per_second=300, behind_bytes_per_second=100_000, tries=200)
BUFFER = 65536

_SENDER = """
import hashlib, json, os, select, socket, sys
end, size = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
end.setblocking(True)
os.sched_setaffinity(0, {int(sys.argv[3])})
data, digest, sent = os.urandom(1 << 20), hashlib.sha256(), 0
while sent // size % 100 or not select.select([0], [], [], 0)[0]:
    at = sent % (len(data) - size)
    digest.update(data[at : at + size])
    end.sendall(data[at : at + size])
    sent += size
print(json.dumps([sent, digest.hexdigest()]))
"""


class Stream:
    """Messages of one size from one end to the other until `stop`; what was sent and what was read."""

    def __init__(
        self, sender: socket.socket, reader: socket.socket, size: int, cpus: tuple[int, int]
    ) -> None:
        self._reader = reader
        self._cpu = cpus[1]
        self._digest = hashlib.sha256()
        self._over = threading.Event()
        self.received = 0
        self.slow = self.ended = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SENDER, str(sender.fileno()), str(size), str(cpus[0])],
            pass_fds=[sender.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        os.sched_setaffinity(threading.get_native_id(), {self._cpu})
        while not self._over.is_set() and not self.ended:
            if self.slow:
                self._over.wait(0.002)
            if select.select([self._reader], [], [], 0.05)[0]:
                more = self._reader.recv(BUFFER)
                self._digest.update(more)
                self.received += len(more)
                self.ended = not more

    def stop(self) -> tuple[tuple[int, str], tuple[int, str]]:
        """Sent and received: bytes and their SHA-256."""
        assert self.process.stdin and self.process.stdout
        self.slow = False
        self.process.stdin.close()
        sent, digest = json.loads(self.process.stdout.read())
        self.process.wait(10)
        with contextlib.suppress(AssertionError):  # what is missing shows in the sums
            wait_for(lambda: self.received >= sent, "all is read", 10)
        self.end()
        return (sent, digest), (self.received, self._digest.hexdigest())

    def end(self) -> None:
        self._over.set()
        self._thread.join(10)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def streaming(
    sender: socket.socket, reader: socket.socket, size: int, *, one_cpu: bool = False
) -> Iterator[Stream]:
    """A stream for the time of a block, its ends on two CPUs or on one."""
    cpus = sorted(os.sched_getaffinity(0))
    stream = Stream(sender, reader, size, (cpus[0], cpus[0] if one_cpu else cpus[-1]))
    try:
        yield stream
    finally:
        stream.end()


def key_of(node: Node, connection: Connection, side: Side = Side.CLIENT) -> SocketKey:
    """The name of one end of an accelerated connection."""
    port = connection.client.getsockname()[1]
    streams = node.maps.redirect.streams.items()
    (key,) = (key for key, one in streams if (one.client_port, one.side) == (port, side))
    return key


class Looking:
    """The agent's part that has senders leave, a look at a time."""

    def __init__(self, client: Pod, server: Pod, limits: Limits = LIMITS) -> None:
        self.told: list[dict[str, object]] = []
        paths = {pod.id: f"/proc/self/fd/{pod.namespace.descriptor}" for pod in (client, server)}
        self._node = client.node
        self._leaver = Leaver(client.node.maps, paths.get, self._log, limits)
        self._at = 0.0

    def _log(self, _level: str, message: str, **more: object) -> None:
        self.told.append({"message": message, **more})

    def look(self) -> None:
        """Once; for it a second has passed."""
        self._at += 1
        self._leaver.look(self._at)

    def look_until(self, condition: Callable[[], bool], what: str) -> None:
        """Again and again; for the streams some time passes in between."""

        def looked() -> bool:
            select.select([], [], [], 0.1)
            self.look()
            return condition()

        wait_for(looked, what, 20)


def leave(pod: Pod, key: SocketKey, reason: str) -> None:
    """A sender that is idle leaves; `pod` is its own."""
    departures = pod.node.maps.departures
    departures.ask(key, reasons.by_label()[reason])
    for step in (DepartureStep.PARTED, DepartureStep.LEFT):
        departures.step(pod.namespace.entered)
        found = departures.entries.get(key)
        assert found and found.step == step, found
    departures.entries.delete(key)


def has_left(node: Node, connection: Connection) -> bool:
    """Whether an end of it is plain TCP again."""
    return any(
        state.stage == Stage.LEFT
        for state in node.maps.redirect.sockets()
        if state.client_port == connection.client.getsockname()[1]
    )


def why_plain(node: Node, connection: Connection) -> str | None:
    """Why a connection is not accelerated; None where it is."""
    found = find(node, connection)
    return found.reason.label if found.reason else None

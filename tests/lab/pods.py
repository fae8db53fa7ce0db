"""Pods of the suite: made in a namespace of their own, asked by exec, gone at the end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.cluster import Cluster
from lab.run import Completed
from tests.lab.waiting import until

SERVER_PORT = 8080
PROBE = {"tcpSocket": {"port": SERVER_PORT}, "periodSeconds": 1}
#: Answers each TCP connection and each UDP datagram with its own host name.
SERVER = f"""
import socket, threading
name = socket.gethostname().encode()
def tcp():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("", {SERVER_PORT})); s.listen(256)
    while True:
        c, _ = s.accept()
        threading.Thread(target=talk, args=(c,), daemon=True).start()
def talk(c):
    c.sendall(name + b" " + c.getpeername()[0].encode() + b"\\n")
    try:
        while data := c.recv(65536): c.sendall(data)
    except OSError: pass
    c.close()
threading.Thread(target=tcp, daemon=True).start()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("", {SERVER_PORT}))
while True:
    _, peer = u.recvfrom(2048); u.sendto(name + b" " + peer[0].encode(), peer)
"""

#: Reads orders, each a line: protocol, host, port, limit. Connects and prints what came back, or the name
#: of the errno. One process for all: to start one takes longer than what it is asked for, on emulated nodes
#: seconds.
CLIENT = """
import errno, json, socket, sys
def ask(proto, host, port, limit):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM) as s:
        s.settimeout(limit)
        try:
            s.connect((host, port))
            if proto == "udp": s.send(b"x")
            return s.recv(2048).decode().strip()
        except TimeoutError: return "ETIMEDOUT"
        except socket.gaierror: return "NXDOMAIN"
        except OSError as e: return errno.errorcode.get(e.errno, str(e.errno))
for line in sys.stdin: print(json.dumps(ask(*json.loads(line))), flush=True)
"""
#: Seconds that an order may take beyond its own limits.
ORDER_SECONDS = 30


class Caller:
    """A process in a pod that connects when told, until `close`."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, order: Sequence[object], seconds: float) -> str:
        """The answer to an order, as JSON; empty if the process has ended, or does not answer in time."""
        assert self._process.stdin
        assert self._process.stdout
        cut = threading.Timer(seconds, self._process.kill)
        cut.start()
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except OSError:
            return ""
        finally:
            cut.cancel()

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()


@dataclass
class Pods:
    """The pods of one namespace. `image` has python3 in it."""

    cluster: Cluster
    namespace: str
    image: str
    made: list[str] = field(default_factory=list)
    callers: dict[str, Caller] = field(default_factory=dict)
    taken: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def create(self) -> None:
        """Make the namespace; a leftover of the same name is removed first."""
        self.remove()
        self.cluster.kubectl("create", "namespace", self.namespace)
        until(
            lambda: (
                self.cluster.kubectl(
                    "get", "serviceaccount", "default", "-n", self.namespace, ok=range(256)
                ).status
                == 0
            ),
            "the namespace has its default service account",
        )

    def remove(self) -> None:
        for name in list(self.callers):
            self.callers.pop(name).close()
        self.cluster.kubectl_wait("delete", "namespace", self.namespace, "--ignore-not-found", seconds=120)

    def drop(self, *names: str) -> None:
        """Delete pods that have served, and wait for nothing."""
        for name in names:
            self.made.remove(name)
        self.cluster.kubectl("delete", "pod", *names, "-n", self.namespace, "--wait=false")

    def run(
        self,
        name: str,
        node: str,
        *,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        ports: Sequence[dict[str, Any]] = ({"containerPort": SERVER_PORT, "name": "web"},),
        probe: bool = True,
        **spec: Any,
    ) -> None:
        """Start a server pod on `node`; `spec` adds to its spec. `probe`: its node asks if it is ready."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {"app": name, **(labels or {})},
                "annotations": annotations or {},
            },
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "server",
                        "image": self.image,
                        "imagePullPolicy": "Never",
                        "command": ["python3", "-u", "-c", SERVER],
                        "ports": list(ports),
                        **({"readinessProbe": PROBE} if probe else {}),
                    }
                ],
                **spec,
            },
        }
        self.apply(pod)
        self.made.append(name)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Create or change objects in the namespace."""
        bundle = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.cluster.kubectl("apply", "-n", self.namespace, "-f", "-", stdin=json.dumps(bundle))

    def ready(self, seconds: float = 60) -> None:
        """Wait until every pod that was started is ready."""
        names = [f"pod/{name}" for name in self.made]
        self.cluster.kubectl_wait(
            "wait", "-n", self.namespace, "--for=condition=Ready", *names, seconds=seconds
        )

    def address(self, name: str) -> str:
        return self.cluster.kubectl(
            "get", "pod", name, "-n", self.namespace, "-o", "jsonpath={.status.podIP}"
        ).stdout

    def exec(self, name: str, command: Sequence[str], timeout: float = 60) -> Completed:
        """Run `command` in the pod; whatever its status."""
        return self.cluster.kubectl(
            "exec", "-n", self.namespace, name, "--", *command, ok=range(256), timeout=timeout
        )

    def talk(
        self, client: str, host: str, port: int = SERVER_PORT, proto: str = "tcp", limit: float = 3
    ) -> str:
        """What the client pod got from `host`: the server's answer, or the name of the errno.

        `limit` is for each of connect and answer; slower nodes get thrice as long, as much as it takes.
        """
        limit *= min(self.cluster.slowness, 3)
        with self.taken[client]:
            for _ in range(
                2
            ):  # the process may be gone: with its pod, or with the API server that it came by
                if client not in self.callers:
                    words = ["exec", "-i", "-n", self.namespace, client, "--", "python3", "-u", "-c", CLIENT]
                    self.callers[client] = Caller(self.cluster.argv(words))
                patience = 2 * limit + ORDER_SECONDS * self.cluster.slowness
                if answer := self.callers[client].ask((proto, host, port, limit), patience):
                    return str(json.loads(answer))
                self.callers.pop(client).close()
        why = self.exec(client, ["true"]).stderr.strip()
        raise AssertionError(f"{self.namespace}/{client} took no order twice: {why or 'now it would'}")

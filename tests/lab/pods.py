"""Pods of the suite: made in a namespace of their own, asked by exec, gone at the end."""

from __future__ import annotations

import json
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

#: Connects (tcp or udp) and prints what came back, or the name of the errno.
CLIENT = """
import errno, socket, sys
proto, host, port, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM)
s.settimeout(limit)
try:
    s.connect((host, port))
    if proto == "udp": s.send(b"x")
    print(s.recv(2048).decode().strip())
except TimeoutError: print("ETIMEDOUT")
except socket.gaierror: print("NXDOMAIN")
except OSError as e: print(errno.errorcode.get(e.errno, e.errno))
"""


@dataclass
class Pods:
    """The pods of one namespace. `image` has python3 in it."""

    cluster: Cluster
    namespace: str
    image: str
    made: list[str] = field(default_factory=list)

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
        self.cluster.kubectl(
            "delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=120s", timeout=130
        )

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
        self.cluster.kubectl(
            "wait", "-n", self.namespace, "--for=condition=Ready", f"--timeout={seconds:g}s", *names,
            timeout=seconds + 10,
        )  # fmt: skip

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
        """What the client pod got from `host`: the server's answer, or the name of the errno."""
        done = self.exec(client, ["python3", "-c", CLIENT, proto, host, str(port), str(limit)])
        assert done.status == 0, done.stderr
        return done.stdout.strip()

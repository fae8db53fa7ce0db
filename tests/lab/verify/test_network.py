"""Area network: pods reach pods by address and name, on the same node and across nodes."""

from __future__ import annotations

import pytest

from lab.render import Rendered
from tests.lab.conftest import Evidence, connect
from tests.lab.pods import Pods

PAIRS = ("same node", "other node")


def _pair(lab: Rendered, where: str) -> tuple[str, str]:
    """A client's and a server's pod for `where`."""
    if where == "other node" and len(lab.nodes) < 2:
        pytest.skip("the lab has one node")
    return "a-0", "a-1" if where == "same node" else "b-0"


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("where", PAIRS)
def test_pods_talk(lab: Rendered, pods: Pods, where: str, proto: str, evidence: Evidence) -> None:
    """A pod reaches another by its address, and is seen under its own"""
    client, server = _pair(lab, where)
    answer = pods.talk(client, pods.address(server), proto=proto)
    evidence(answer)
    assert answer == f"{server} {pods.address(client)}"


@pytest.mark.parametrize("where", PAIRS)
def test_pods_ping(lab: Rendered, pods: Pods, where: str, evidence: Evidence) -> None:
    """A pod's ping is answered"""
    client, server = _pair(lab, where)
    done = pods.exec(client, ["ping", "-c", "2", "-W", "2", pods.address(server)])
    evidence(done.stdout.strip().splitlines()[-1])
    assert done.status == 0


@pytest.mark.parametrize("where", PAIRS)
def test_large_streams_arrive_whole(lab: Rendered, pods: Pods, where: str, evidence: Evidence) -> None:
    """16 MiB sent to a pod come back with the same SHA-256"""
    client, server = _pair(lab, where)
    code = (
        "import hashlib, os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], 8080), 10); s.settimeout(60)\n"
        "data = os.urandom(16 << 20); got = hashlib.sha256(); n = 0\n"
        "head = b''\n"
        "while not head.endswith(b'\\n'): head += s.recv(1)\n"
        "threading.Thread(target=s.sendall, args=(data,)).start()\n"
        "while n < len(data):\n"
        "    chunk = s.recv(1 << 16); assert chunk; got.update(chunk); n += len(chunk)\n"
        "print(got.hexdigest() == hashlib.sha256(data).hexdigest())\n"
    )
    done = pods.exec(client, ["python3", "-c", code, pods.address(server)])
    evidence(done.stdout.strip() or done.stderr[-200:])
    assert done.stdout.strip() == "True"


def test_the_node_reaches_its_pods(lab: Rendered, pods: Pods, evidence: Evidence) -> None:
    """A node reaches the pods that it runs, as probes do"""
    host = connect(lab, lab.nodes[0])
    done = host.run("curl -s --max-time 3 --http0.9 http://%s:8080/ | head -c 3", pods.address("a-0"))
    evidence(done.stdout)
    assert done.stdout.startswith("a-0")


def test_pods_find_services_by_name(pods: Pods, evidence: Evidence) -> None:
    """A pod finds a Service by its DNS name, and a name that is not there is said not to be"""
    code = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"
    done = pods.exec("a-0", ["python3", "-c", code, "kubernetes.default.svc.cluster.local"])
    evidence(done.stdout.strip())
    assert done.status == 0, done.stderr
    assert pods.talk("a-0", "no-such-service") == "NXDOMAIN"


def test_every_node_is_ready(pods: Pods, evidence: Evidence) -> None:
    """Every node is Ready: its network plugin says that it works"""
    nodes = pods.cluster.nodes()
    evidence(", ".join(f"{node.name} {node.reason or 'Ready'}" for node in nodes))
    assert all(node.ready for node in nodes)

"""Area mesh: what passes sidecars of one node goes from socket to socket, and to no other socket."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from lab.render import Rendered
from tests.lab.conftest import Evidence, connect
from tests.lab.load import load
from tests.lab.mesh import HTTP_PORT, Mesh, service
from tests.lab.pods import SERVER_PORT, Pods
from tests.lab.waiting import until
from tests.sizes import SIZES

#: Requests in which no packet may be seen; connections that the sidecars keep are made before.
WINDOW = 200
INBOUND_PORT = 15006  # where a sidecar takes what comes in
OPT_OUT = {"underpass.dev/redirect": "disabled"}

#: Opens, again and again, one connection to each of two servers from one and the same source port, and holds
#: that each answers with its own name and with what it was sent.
COLLIDE = (
    """
import collections, os, socket, struct, sys
rounds, port, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
wrong, done = collections.Counter(), 0
def connected(name, port):
    s = socket.socket(); s.settimeout(10)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.bind(("", port)); s.connect((name, %d))
    return s
for number in range(rounds):
    here = port + number %% 8
    try:
        ends = {name: connected(name, here) for name in names}
    except OSError as fault:
        wrong[f"connect: {fault}"] += 1
        continue
    for name, s in ends.items():
        said = f"{name} {os.getpid()} {number} ".encode() * 40
        s.sendall(said)
        ends[name] = (s, said)
    for name, (s, said) in ends.items():
        got = b""
        try:
            while len(got) < len(said) or not got.endswith(said):
                more = s.recv(65536)
                if not more: break
                got += more
            first, _, rest = got.partition(b"\\n")
            if first.split()[0].decode() != name or rest != said: wrong[f"{name} got {got[:60]!r}"] += 1
            else: done += 1
        except (OSError, IndexError) as fault:
            wrong[f"{name}: {fault!r}"] += 1
        s.close()
print(done, dict(wrong))
"""
    % SERVER_PORT
)


@pytest.fixture(scope="module")
def accelerated(mesh: Mesh, lab: Rendered) -> Iterator[Mesh]:
    """More of the mesh on the first node: two servers that echo, a second client, one that opted out."""
    first = lab.nodes[0].name
    names = ["echo-1", "echo-2", "client-2"]
    for name in names:
        mesh.run(name, first)
        mesh.apply(service(name, {"app": name}, ports=[{"name": "tcp", "port": SERVER_PORT}]))
    mesh.serve("apart", first, annotations=OPT_OUT)
    try:
        mesh.ready(90)
        for name in ("near", "apart"):
            mesh.becomes("client", f"http://{name}/get", "200")
        for name in ("echo-1", "echo-2"):
            until(partial(_answers, mesh, name), f"{name} answers")
        yield mesh
    finally:
        for name in (*names, "apart"):
            mesh.made.remove(name)
        gone = ("delete", "pod,service", *names, "apart", "-n", mesh.namespace, "--wait=false")
        mesh.cluster.kubectl(*gone, ok=range(256))


def _answers(mesh: Mesh, name: str) -> bool:
    return mesh.talk("client", name).startswith(f"{name} ")


def _explained(lab: Rendered, client: str, server: str) -> list[dict[str, Any]]:
    """The open connections between two pods of the first node, as its agent explains them."""
    answer = connect(lab, lab.nodes[0]).check_output("underpass explain %s %s -o json", client, server)
    connections: list[dict[str, Any]] = json.loads(answer)["connections"]
    return connections


def _legs(lab: Rendered, mesh: Mesh, server: str) -> dict[str, list[dict[str, Any]]]:
    """The connections of each leg from the application in `client` to the one in `server`."""
    client, other = f"{mesh.namespace}/client", f"{mesh.namespace}/{server}"
    asked = f"{mesh.get('service', server)['spec']['clusterIP']}:80"
    return {
        "application to its sidecar": [
            one for one in _explained(lab, client, client) if one["server"] == asked
        ],
        "sidecar to sidecar": [
            one
            for one in _explained(lab, client, other)
            if one["server"] == f"{mesh.address(server)}:{HTTP_PORT}"
        ],
        "sidecar to application": [
            one for one in _explained(lab, other, other) if one["client"].startswith("127.0.0.6:")
        ],
    }


@contextmanager
def _packets(lab: Rendered, mesh: Mesh, server: str) -> Iterator[Callable[[], int]]:
    """Count the packets between the pods `client` and `server` on all of the first node's devices."""
    host = connect(lab, lab.nodes[0])
    file = f"/tmp/underpass-{server}.pcap"  # on the node
    pair = f"tcp and host {mesh.address('client')} and host {mesh.address(server)}"
    capture = f"exec timeout 60 tcpdump -i any -U -s 96 -w {file} '{pair}'"
    host.check_output("systemd-run --quiet --unit=underpass-count -- sh -c %s", capture)

    def count() -> int:
        return len(host.check_output("tcpdump -r %s 2>/dev/null", file).splitlines())

    try:
        until(lambda: host.run("test -s %s", file).rc == 0, "the capture has begun")
        yield count
    finally:
        host.run("systemctl stop underpass-count.service; rm -f %s", file)


def test_every_leg_through_two_sidecars_is_accelerated(
    accelerated: Mesh, lab: Rendered, evidence: Evidence
) -> None:
    """Application to sidecar, sidecar to sidecar, sidecar to application: all go from socket to socket"""
    with load(accelerated, "client", "near") as seen:
        seen.goes_on()
        legs = _legs(lab, accelerated, "near")
    assert seen.failures == []
    for leg, connections in legs.items():
        fast = [one for one in connections if one["accelerated"]]
        ways = [one[way] for one in fast for way in ("from_client", "from_server")]
        sent = sum(way["messages"] for way in ways)
        evidence(f"{leg}: {len(fast)} of {len(connections)}, {sent} messages")
        assert fast, (leg, connections)
        assert sent > 50, (leg, connections)


def test_no_packet_is_between_accelerated_sidecars(
    accelerated: Mesh, lab: Rendered, evidence: Evidence
) -> None:
    """While requests pass two sidecars of one node, no packet is seen between their pods on any device"""
    with load(accelerated, "client", "near") as seen:
        seen.goes_on()
        with _packets(lab, accelerated, "near") as packets:
            seen.goes_on(WINDOW)
            fast = packets()
    with load(accelerated, "client", "apart") as other:
        other.goes_on()
        with _packets(lab, accelerated, "apart") as packets:
            other.goes_on(WINDOW)
            until(lambda: packets() >= WINDOW, "the same count sees packets of the pod that opted out", 10)
            plain = packets()
    evidence(f"{fast} packets, {plain} where it is off, of {WINDOW} requests each")
    assert (seen.failures, other.failures) == ([], [])
    assert fast == 0


def test_a_pod_opts_out_by_annotation(accelerated: Mesh, lab: Rendered, evidence: Evidence) -> None:
    """Nothing of a pod that says so is accelerated, and the reason is told"""
    with load(accelerated, "client", "apart") as seen:
        seen.goes_on()
        legs = _legs(lab, accelerated, "apart")
    for leg in ("sidecar to sidecar", "sidecar to application"):
        told = {(one["accelerated"], one["reason"]) for one in legs[leg]}
        evidence(f"{leg}: {told}")
        assert told == {(False, "opted-out")}
    assert seen.failures == []


def test_bytes_reach_the_socket_that_they_were_sent_to(
    accelerated: Mesh, lab: Rendered, evidence: Evidence
) -> None:
    """Two servers, two client pods, one source port at a time, reset and used again: no byte goes astray"""
    before = accelerated.status("client", "http://near/get")
    command = ["python3", "-c", COLLIDE, str(SIZES.mesh_collisions), "41000", "echo-1", "echo-2"]
    programs = [
        accelerated.cluster.argv(["exec", "-n", accelerated.namespace, client, "--", *command])
        for client in ("client", "client-2")
    ]
    outcomes = _at_once(programs)
    evidence(outcomes)
    assert outcomes == [f"{2 * SIZES.mesh_collisions} {{}}"] * 2
    assert (before, accelerated.status("client", "http://near/get")) == ("200", "200")
    counted = connect(lab, lab.nodes[0]).check_output("underpass explain -o json")
    assert any(one["accelerated"] for one in json.loads(counted)["connections"])


def _at_once(programs: list[list[str]]) -> list[str]:
    """Run programs side by side; what each printed."""
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for argv in programs]
    return [process.communicate(timeout=300)[0].strip() for process in running]


def test_the_same_bytes_come_back_accelerated_or_not(accelerated: Mesh, evidence: Evidence) -> None:
    """100 KiB have the same content from an accelerated server, one that opted out, and one far away"""
    sums = {}
    for server in ("near", "apart", "far"):
        command = f"curl -sSf 'http://{server}/bytes/102400?seed=7' | sha256sum"
        sums[server] = accelerated.exec("client", ["sh", "-c", command]).stdout.split()[0]
    evidence(sums["near"])
    assert len(set(sums.values())) == 1


def test_who_dials_a_sidecars_own_port_gains_nothing(
    accelerated: Mesh, outside: Pods, evidence: Evidence
) -> None:
    """Policy judges the port that is asked for: who may use a pod's port may not use its sidecar's own"""
    accelerated.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "one-port"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "near"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": [{"port": HTTP_PORT, "protocol": "TCP"}]}],
            },
        }
    )
    address = accelerated.address("near")

    def taken(port: int) -> bool:
        """Whether a connection comes about: under STRICT nothing is said on it."""
        return outside.exec("plain", ["nc", "-z", "-w", "2", address, str(port)]).status == 0

    try:
        until(lambda: not taken(INBOUND_PORT), "the sidecar's own port is closed", 20)
        asked = taken(HTTP_PORT)
        evidence(f"port {INBOUND_PORT} is closed, port {HTTP_PORT} is {'open' if asked else 'closed'}")
        assert asked
        assert accelerated.status("client", "http://near/get") == "200"
    finally:
        accelerated.clear("networkpolicy")

"""Area mesh: what passes sidecars of one node goes from socket to socket, and to no other socket."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
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
SIDECARS_PORTS = (15006, 15001)  # where a sidecar takes what comes in, and what goes out
MARKER = "underpass-plain-text-marker"  # something that no request holds by chance
CAPTURE_SECONDS = 60  # at most; as all limits it grows with the lab's slowness
OPT_OUT = {"underpass.dev/redirect": "disabled"}

COLLIDE = (Path(__file__).parent / "inside" / "collide.py").read_text()
FIRST_PORT = 21000  # of none that the kernel gives a socket that asks for any: bind() would meet those
AGAIN = 2  # a round of that program has two connections of one port twice


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
        made = (*names, "apart", "echo-1-too", "echo-2-too")
        gone = ("delete", "pod,service", *made, "-n", mesh.namespace, "--wait=false")
        mesh.cluster.kubectl(*gone, ok=range(256))


def _answers(mesh: Mesh, service: str, pod: str = "") -> bool:
    return mesh.talk("client", service).startswith(f"{pod or service} ")


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
    limit = CAPTURE_SECONDS * mesh.cluster.slowness
    capture = f"exec timeout {limit:g} tcpdump -i any -U -s 96 -w {file} '{pair}'"
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
    """Source ports collide, are translated, reset, used again, by pods and by others: no byte goes astray"""
    before = accelerated.status("client", "http://near/get")
    for name in ("echo-1", "echo-2"):  # for who shares a pod's ports: the same four numbers are no connection
        ports = [{"name": "tcp", "port": SERVER_PORT}]
        accelerated.apply(service(f"{name}-too", {"app": name}, ports=ports))
        until(partial(_answers, accelerated, f"{name}-too", name), f"{name} answers by its second Service")
    programs = [
        accelerated.cluster.argv(
            [
                "exec",
                "-n",
                accelerated.namespace,
                client,
                "--",
                "python3",
                "-c",
                COLLIDE,
                *_words(accelerated),
            ]
        )
        for client in ("client", "client-2")
    ]
    if outsider := _outside_of_the_node(accelerated, lab, "client"):
        programs.append([*outsider, sys.executable, "-c", COLLIDE, *_words(accelerated, "-too")])
    outcomes = _at_once(programs, accelerated.cluster.slowness)
    evidence(outcomes)
    assert outcomes == [{"done": 2 * SIZES.mesh_collisions, "wrong": {}}] * len(programs)
    assert (before, accelerated.status("client", "http://near/get")) == ("200", "200")
    counted = connect(lab, lab.nodes[0]).check_output("underpass explain -o json")
    assert any(one["accelerated"] for one in json.loads(counted)["connections"])


def _words(mesh: Mesh, suffix: str = "") -> list[str]:
    """The arguments of `inside/collide.py`, with addresses: who comes from outside has no names."""
    places = [
        f"{name}={mesh.get('service', name + suffix)['spec']['clusterIP']}:{SERVER_PORT}"
        for name in ("echo-1", "echo-2")
    ]
    return [str(SIZES.mesh_collisions // AGAIN), str(FIRST_PORT), *places]


def _outside_of_the_node(mesh: Mesh, lab: Rendered, pod: str) -> list[str]:
    """What runs a command in a pod's network, but in none of the node's cgroups; empty if that cannot be.

    Its sockets are unknown to the node's programs, and share ports and translation with the pod's.
    """
    inside = _process_of(mesh.get("pod", pod)["metadata"]["uid"])
    if inside is None:
        return []  # the node has a kernel of its own, and nothing on it is outside of it
    assert f"/{lab.cgroup}" not in Path("/proc/self/cgroup").read_text()
    return ["nsenter", f"--net=/proc/{inside}/ns/net", "--"]


def _process_of(uid: str) -> int | None:
    """A process of a pod, as this host numbers it."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"pod{uid}" in (process / "cgroup").read_text():
                return int(process.name)
    return None


def _at_once(programs: list[list[str]], slowness: float) -> list[dict[str, Any]]:
    """Run programs side by side; the JSON that each printed."""
    limit = (120 + SIZES.mesh_collisions / 5) * slowness
    running = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for argv in programs
    ]
    found = []
    try:
        for process in running:
            out, err = process.communicate(timeout=limit)
            assert process.returncode == 0 and out, err
            found.append(json.loads(out))
    finally:
        for process in running:
            process.kill()
    return found


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
        for port in SIDECARS_PORTS:
            until(partial(lambda at: not taken(at), port), f"the sidecar's own port {port} is closed", 20)
        asked = taken(HTTP_PORT)
        evidence(f"ports {SIDECARS_PORTS} are closed, port {HTTP_PORT} is {'open' if asked else 'closed'}")
        assert asked
        # Nor by way of the caller's own sidecar, whose connections are accelerated.
        for port in SIDECARS_PORTS:
            assert accelerated.status("client", f"http://{address}:{port}/get", limit=3) != "200"
        assert accelerated.status("client", "http://near/get") == "200"
    finally:
        accelerated.clear("networkpolicy")


def test_plain_text_stays_within_a_pod(
    accelerated: Mesh, outside: Pods, lab: Rendered, evidence: Evidence
) -> None:
    """Between pods of one node, what sidecars say is TLS; the same capture shows what one without says"""
    host = connect(lab, lab.nodes[0])
    file = "/tmp/underpass-plain.pcap"  # on the node
    limit = CAPTURE_SECONDS * accelerated.cluster.slowness
    capture = f"exec timeout {limit:g} tcpdump -i any -U -s 0 -w {file} tcp port {HTTP_PORT}"
    host.check_output("systemd-run --quiet --unit=underpass-plain -- sh -c %s", capture)
    url = f"http://{accelerated.address('apart')}:{HTTP_PORT}/get"
    try:
        until(lambda: host.run("test -s %s", file).rc == 0, "the capture has begun")
        # To one that opted out, so that there are packets.
        asked = accelerated.status("client", "http://apart/get", "-H", f"x-marker: {MARKER}-mesh")
        assert asked == "200"
        outside.exec("plain", ["curl", "-s", "-m", "3", "-H", f"x-marker: {MARKER}-none", url])
        until(lambda: host.run("grep -qa %s-none %s", MARKER, file).rc == 0, "plain text is seen", 15)
        seen = host.run("grep -ca %s-mesh %s", MARKER, file).stdout.strip()
        between = f"host {accelerated.address('client')} and host {accelerated.address('apart')}"
        packets = len(host.check_output("tcpdump -r %s '%s' 2>/dev/null" % (file, between)).splitlines())
    finally:
        host.run("systemctl stop underpass-plain.service; rm -f %s", file)
    evidence(f"{packets} packets between the sidecars, marker in plain text {seen} times")
    assert packets > 0
    assert seen == "0"


def test_istios_own_rules_are_untouched(accelerated: Mesh, lab: Rendered, evidence: Evidence) -> None:
    """A pod whose sidecar is accelerated has the same packet rules of Istio's as one that opted out"""
    host = connect(lab, lab.nodes[0])
    rules = {}
    for name in ("near", "apart"):
        uid = accelerated.get("pod", name)["metadata"]["uid"]
        inside = f"$(grep -l pod{uid} /proc/[0-9]*/cgroup | head -1 | cut -d/ -f3)"
        text = host.check_output(f"nsenter --net=/proc/{inside}/ns/net nft list ruleset")
        rules[name] = re.sub(r"counter packets \d+ bytes \d+", "counter", text)
    evidence(f"{len(rules['near'].splitlines())} lines")
    assert all(f"redirect to :{port}" in rules["near"] for port in SIDECARS_PORTS), rules["near"]
    assert rules["near"] == rules["apart"]

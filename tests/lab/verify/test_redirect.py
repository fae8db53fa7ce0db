"""Area redirect: two pods of one node talk socket to socket, and policy still holds."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.conftest import Evidence, connect
from tests.lab.pods import SERVER_PORT, Pods
from tests.lab.talker import Talker
from tests.lab.waiting import until
from tests.sizes import SIZES

CLIENT, SERVER, SHY = "fast-0", "fast-1", "shy"
# From the policy's being written to the connection's end, on a machine that may be busy with other things.
RESET_SECONDS = 5.0
ROUNDS = 5


@pytest.fixture(scope="module")
def close(pods: Pods, lab: Rendered) -> Iterator[Pods]:
    """Three pods of the first node that nobody probes: what moves on their cables, they sent themselves."""
    opted_out = {"underpass.dev/redirect": "disabled"}
    for name in (CLIENT, SERVER, SHY):
        pods.run(name, lab.nodes[0].name, probe=False, annotations=opted_out if name == SHY else None)
    pods.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "fast"},
            "spec": {"selector": {"app": SERVER}, "ports": [{"port": 80, "targetPort": SERVER_PORT}]},
        }
    )
    pods.ready()
    yield pods
    pods.cluster.kubectl("delete", "networkpolicy", "--all", "-n", pods.namespace)


class Cables:
    """The packets on the cables of some pods, as the node's own devices count them."""

    def __init__(self, lab: Rendered, command: LabCommand, pods: Pods, *names: str) -> None:
        wanted = {f"{pods.namespace}/{name}" for name in names}
        devices = [row["interface"] for row in command.json("endpoints") if row["pod"] in wanted]
        assert len(devices) == len(names)
        self._files = " ".join(
            f"/sys/class/net/{device}/statistics/{way}_packets" for device in devices for way in ("rx", "tx")
        )
        self._host = connect(lab, lab.nodes[0])

    def count(self) -> int:
        return sum(int(line) for line in self._host.check_output(f"cat {self._files}").split())

    def moved_while(self, talker: Talker, times: int) -> int:
        """Packets that moved while `talker` made so many requests."""
        before = self.count()
        talker.talk(times)
        return self.count() - before


def _explained(
    command: LabCommand, pods: Pods, talker: Talker, client: str = CLIENT
) -> dict[str, Any] | None:
    """What `lab explain` says of the talker's connection; None once it is gone."""
    found = command.json("explain", f"{pods.namespace}/{client}", f"{pods.namespace}/{SERVER}")
    mine = [one for one in found["connections"] if one["client"].endswith(f":{talker.port}")]
    assert len(mine) <= 1, mine
    return mine[0] if mine else None


def _policy(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "fast"},
        "spec": {"podSelector": {"matchLabels": {"app": SERVER}}, "policyTypes": ["Ingress"], **spec},
    }


def test_every_agent_has_tried_it(lab: Rendered, command: LabCommand, pods: Pods, evidence: Evidence) -> None:
    """On every node, one connection at the agent's start proved that redirect works there"""

    def tried() -> list[dict[str, Any]] | None:
        rows = command.json("agents")
        return rows if all(row["redirect"] == "works" for row in rows) else None

    rows = until(tried, "every agent's self-test", 30)
    evidence(", ".join(f"{row['node']}: {row['redirect']}" for row in rows))


@pytest.mark.parametrize("way", ["the pod's address", "the Service's address"])
def test_no_packet_moves_between_two_pods_of_a_node(
    close: Pods, lab: Rendered, command: LabCommand, way: str, evidence: Evidence
) -> None:
    """Requests and replies between two pods of a node, by pod or Service address, move no packet"""
    host, port = (close.address(SERVER), SERVER_PORT) if way.startswith("the pod") else ("fast", 80)
    cables = Cables(lab, command, close, CLIENT, SERVER)
    with Talker(close, CLIENT, host, port) as talker:
        # A cable that has just come up says a word or two of its own (IPv6): another round is quiet.
        moved = 1
        for _ in range(ROUNDS):
            moved = cables.moved_while(talker, SIZES.redirect_requests)
            if not moved:
                break
        seen = _explained(command, close, talker)
    assert seen
    sent = seen["from_client"]
    evidence(f"{SIZES.redirect_requests} requests, {moved} packets; {sent['bytes']} bytes sent")
    assert (moved, seen["accelerated"]) == (0, True)
    assert seen["from_client"]["messages"] >= SIZES.redirect_requests


def test_a_pod_that_opted_out_is_plain_and_says_why(
    close: Pods, lab: Rendered, command: LabCommand, evidence: Evidence
) -> None:
    """A pod that opted out by annotation talks by TCP, and `lab explain` gives the reason"""
    cables = Cables(lab, command, close, SHY, SERVER)
    with Talker(close, SHY, close.address(SERVER)) as talker:
        moved = cables.moved_while(talker, SIZES.redirect_requests)
        seen = _explained(command, close, talker, SHY)
    assert seen
    evidence(f"{moved} packets for {SIZES.redirect_requests} requests; {seen['reason']}: {seen['why']}")
    assert (seen["accelerated"], seen["reason"]) == (False, "opted-out")
    assert moved >= 2 * SIZES.redirect_requests


def test_pods_of_two_nodes_are_plain_and_say_why(
    close: Pods, lab: Rendered, command: LabCommand, evidence: Evidence
) -> None:
    """A connection to another node is told to be plain TCP, before and while it is there"""
    if len(lab.nodes) < 2:
        pytest.skip("the lab has one node")
    ends = (f"{close.namespace}/{CLIENT}", f"{close.namespace}/b-0")
    with Talker(close, CLIENT, close.address("b-0")) as talker:
        talker.talk(1)
        found = command.json("explain", *ends)
    reasons = {one["reason"] for one in found["connections"]}
    evidence(f"now {sorted(reasons)}, a new one {found['next']['reason']}")
    assert (reasons, found["next"]["reason"]) == ({"peer-not-local"}, "peer-not-local")


def test_a_policy_that_allows_it_leaves_a_connection_alone(
    close: Pods, command: LabCommand, evidence: Evidence
) -> None:
    """An accelerated connection that a new policy allows goes on, accelerated"""
    rule = {"from": [{"podSelector": {"matchLabels": {"app": CLIENT}}}]}
    with Talker(close, CLIENT, close.address(SERVER)) as talker:
        talker.talk(10)
        close.apply(_policy(ingress=[rule]))
        until(lambda: command.json("policy", "get", "fast"), "the nodes know the policy")
        talker.talk(100)
        seen = until(lambda: _explained(command, close, talker), "the connection is there")
        evidence(f"accelerated={seen['accelerated']} after {seen['from_client']['messages']} messages")
        assert seen["accelerated"]
        assert seen["from_client"]["messages"] >= 110
    close.cluster.kubectl("delete", "networkpolicy", "fast", "-n", close.namespace)


@pytest.mark.parametrize("doing", ["stream", "wait"])
def test_a_policy_that_denies_it_ends_a_connection(
    close: Pods, command: LabCommand, doing: str, evidence: Evidence
) -> None:
    """An accelerated connection that a new policy denies is reset at both ends, busy or idle"""
    with Talker(close, CLIENT, close.address(SERVER)) as talker:
        talker.talk(10)
        seen = _explained(command, close, talker)
        assert seen
        assert seen["accelerated"]
        talker.order(doing)
        close.apply(_policy())
        denied = time.time()
        try:
            what, when = talker.ended()
            until(lambda: _explained(command, close, talker) is None, "the server's end is gone, too", 10)
        finally:
            close.cluster.kubectl("delete", "networkpolicy", "fast", "-n", close.namespace)
    evidence(f"{what} {max(0.0, when - denied):.3f} s after the policy was written")
    assert what == "ECONNRESET"
    assert when - denied < RESET_SECONDS * close.cluster.slowness


def test_a_restart_of_the_agent_is_not_seen(
    close: Pods, lab: Rendered, command: LabCommand, evidence: Evidence
) -> None:
    """An accelerated connection goes on while the agent restarts, and the new agent knows it"""
    host = connect(lab, lab.nodes[0])
    with Talker(close, CLIENT, close.address(SERVER)) as talker:
        talker.talk(10)
        host.check_output("systemctl restart --no-block underpass-agent")
        talker.talk(SIZES.redirect_requests)
        host.check_output("systemctl restart underpass-agent")  # and wait until this one is there

        def ready() -> bool:
            return bool(host.run("curl -sf http://127.0.0.1:9964/healthz").rc == 0)

        until(ready, "the agent is ready again")
        talker.talk(10)
        seen = _explained(command, close, talker)
        assert seen
        sent = seen["from_client"]
        evidence(f"{sent['messages']} messages, {sent['tcp_bytes']} bytes by TCP")
        assert seen["accelerated"]
        assert seen["from_client"]["messages"] == SIZES.redirect_requests + 20


#: A server that reads all of one connection and answers with how much that was.
DRAIN = """
import os, socket, sys
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
listener = socket.create_server(('', int(sys.argv[1])))
print('ready', flush=True)
end, _ = listener.accept()
total = 0
while got := len(end.recv(65536)): total += got
end.sendall(str(total).encode())
"""
#: Sends messages of 64 bytes until its input ends, not more than its reader can take; prints what it has
#: sent, and what the server says of it. With a third word it waits for that in `recv()` from the beginning
#: on, again where that says EAGAIN (docs/redirect.md, "Where it differs from TCP").
STREAM = """
import contextlib, os, select, socket, sys, threading
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
end, sent, answer = socket.create_connection((sys.argv[1], int(sys.argv[2]))), 0, []
print(end.getsockname()[1], flush=True)
def read():
    while not answer:
        with contextlib.suppress(BlockingIOError): answer.append(end.recv(100))
reader = threading.Thread(target=read)
if sys.argv[3:]: reader.start()
while not select.select([0], [], [], 0.005)[0]: sent += sum(end.send(b'x' * 64) for _ in range(200))
end.shutdown(socket.SHUT_WR)
if not sys.argv[3:]: select.select([end], [], []), reader.start()
reader.join()
print(sent, answer[0].decode(), flush=True)
"""
DRAIN_PORT = 9500


@contextlib.contextmanager
def _one_way_stream(close: Pods, port: int, *words: str) -> Iterator[tuple[str, Callable[[], list[int]]]]:
    """A stream of small messages that goes on: its client's port, and what ends it and tells the bytes that
    were sent and received.
    """
    with contextlib.ExitStack() as ending:

        def start(pod: str, code: str, *words: str) -> subprocess.Popen[str]:
            argv = ["exec", "-i", "-n", close.namespace, pod, "--", "python3", "-c", code, *words]
            made = subprocess.Popen(
                close.cluster.argv(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            ending.callback(made.wait, 30)
            ending.callback(made.kill)
            return made

        def line(process: subprocess.Popen[str]) -> str:
            assert process.stdout
            return process.stdout.readline().strip()

        assert line(start(SERVER, DRAIN, str(port))) == "ready"
        sender = start(CLIENT, STREAM, close.address(SERVER), str(port), *words)

        def end() -> list[int]:
            assert sender.stdin
            sender.stdin.close()
            return [int(count) for count in line(sender).split()]

        yield line(sender), end


def _stream_explained(close: Pods, command: LabCommand, client_port: str) -> dict[str, Any] | None:
    found = command.json("explain", f"{close.namespace}/{CLIENT}", f"{close.namespace}/{SERVER}")
    ours = [one for one in found["connections"] if one["client"].endswith(f":{client_port}")]
    return ours[0] if ours else None


def _needs_many_messages(close: Pods) -> None:
    if close.cluster.slowness > 1:
        pytest.skip("an emulated processor sends too few messages a second")


def test_a_stream_of_small_messages_gets_tcp_back(
    close: Pods, command: LabCommand, evidence: Evidence
) -> None:
    """A one-way stream of small messages, which TCP carries quicker, leaves redirect and loses no byte"""
    _needs_many_messages(close)
    with _one_way_stream(close, DRAIN_PORT) as (port, end):

        def left() -> dict[str, Any] | None:
            found = _stream_explained(close, command, port)
            return found if found and found["reason"] else None

        seen = until(left, "its sender leaves redirect", 30)
        assert (seen["accelerated"], seen["reason"]) == (False, "small-messages")
        sent, received = end()
    evidence(f"{seen['why']}; {sent} bytes sent, {received} received")
    assert sent == received > seen["from_client"]["bytes"] > 0


def test_why_a_sender_stays_in_redirect_is_told(close: Pods, command: LabCommand, evidence: Evidence) -> None:
    """A sender that would be better off with TCP and waits in recv() cannot leave; explain says so"""
    _needs_many_messages(close)
    with _one_way_stream(close, DRAIN_PORT + 1, "waits") as (port, end):

        def kept() -> dict[str, Any] | None:
            found = _stream_explained(close, command, port)
            return found if found and found["note"] else None

        seen = until(kept, "it was asked to leave for long enough", 60)
        assert seen["accelerated"]
        assert (seen["from_client"]["better_by_tcp"], seen["from_client"]["obstacle"]) == (
            "small-messages",
            "in-use",
        )
        sent, received = end()
    evidence(f"{seen['note']}; {sent} bytes sent, {received} received")
    assert sent == received > seen["from_client"]["bytes"] > 0


def test_metrics_tell_accelerated_connections_apart(close: Pods, lab: Rendered, evidence: Evidence) -> None:
    """Prometheus sees accelerated connections, their messages and bytes, and why others are plain"""
    host = connect(lab, lab.nodes[0])
    with Talker(close, CLIENT, close.address(SERVER)) as talker, Talker(close, SHY, close.address(SERVER)):
        talker.talk(10)
        text = host.check_output("curl -sf http://127.0.0.1:9964/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    living = {
        (s.labels["accelerated"], s.labels["reason"]): s.value
        for s in samples
        if s.name == "underpass_redirect_connections"
    }
    totals = {s.name: s.value for s in samples if s.name.startswith("underpass_redirect_") and not s.labels}
    evidence(f"{living}")
    assert living["true", ""] >= 1
    assert living["false", "opted-out"] >= 1
    assert totals["underpass_redirect_messages_total"] >= 20
    assert totals["underpass_redirect_bytes_total"] >= 20 * 256

"""What the agent writes to the API: the latest state of each thing, tried until it is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import outbox as outboxes
from agent.identity.allocator import IdentityAllocator
from agent.model.faults import Fault
from agent.model.objects import Endpoint, Name, PolicySource
from agent.outbox import Hopeless, Outbox
from agent.planes.kubernetes.client import ApiError
from agent.policy.rules import Parsed
from agent.publish import publisher as publishing
from agent.publish.publisher import Publisher
from agent.services.health import Health
from tests.fake_kernel import FakeKernel
from tests.unit.test_agent_engine import OTHER, OWN, Bench, labelled, pod
from tests.unit.test_agent_identity import Server


@pytest.fixture
def outbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    monkeypatch.setattr(outboxes, "FIRST_WAIT", 0.01)
    made = Outbox(2, lambda *_, **__: None)
    made.start()
    yield made
    made.stop()


def settle(outbox: Outbox) -> None:
    """Until a task that was submitted last has run and nothing waits or runs."""
    import time

    deadline = time.monotonic() + 10
    while outbox.waiting or outbox._running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_newer_task_replaces_one_that_waits(outbox: Outbox) -> None:
    done: list[str] = []
    outbox.submit("a", lambda: done.append("old"), delay=0.2)
    outbox.submit("a", lambda: done.append("new"))
    settle(outbox)
    assert done == ["new"]


def test_a_task_is_tried_until_it_is_done(outbox: Outbox) -> None:
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise ApiError(0, "Unreachable", "away")

    outbox.submit("a", work)
    settle(outbox)
    assert len(tries) == 4


def test_a_failed_task_does_not_come_back_over_a_newer_one(outbox: Outbox) -> None:
    done: list[str] = []
    started, go = threading.Event(), threading.Event()

    def old() -> None:
        done.append("old")
        started.set()
        go.wait(5)
        raise ApiError(0, "Unreachable", "away")

    outbox.submit("a", old)
    assert started.wait(5)
    outbox.submit("a", lambda: done.append("new"))
    go.set()
    settle(outbox)
    assert done == ["old", "new"]


def test_a_hopeless_task_is_dropped(outbox: Outbox) -> None:
    tries: list[int] = []

    def work() -> None:
        tries.append(1)
        raise Hopeless("no use")

    outbox.submit("a", work)
    settle(outbox)
    assert tries == [1]


def test_one_key_runs_once_at_a_time(outbox: Outbox) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1

    for _ in range(10):
        outbox.submit("a", work)
        threading.Event().wait(0.003)
    settle(outbox)
    assert most == 1


class Objects:
    """An API server's objects by path, with the requests that it has seen."""

    def __init__(self) -> None:
        self.content: dict[str, dict[str, Any]] = {}
        self.seen: list[tuple[str, str]] = []

    def get(self, path: str) -> dict[str, Any]:
        self.seen.append(("get", path))
        if path not in self.content:
            raise ApiError(404, "NotFound", path)
        return self.content[path]

    def create(self, path: str, body: Any) -> dict[str, Any]:
        self.seen.append(("create", path))
        at = f"{path}/{body['metadata']['name']}"
        if at in self.content:
            raise ApiError(409, "AlreadyExists", at)
        self.content[at] = body
        return dict(body)

    def merge(self, path: str, body: Any) -> dict[str, Any]:
        self.seen.append(("merge", path))
        at = path.removesuffix("/status")
        self.content[at] = {**self.content[at], **body}
        return self.content[at]

    def delete(self, path: str, body: Any = None) -> dict[str, Any]:
        self.seen.append(("delete", path))
        if path not in self.content:
            raise ApiError(404, "NotFound", path)
        return self.content.pop(path)


class Ended:
    """Remembers whose connections were to be ended."""

    def __init__(self) -> None:
        self.endpoints: set[int] = set()

    def moved(self, endpoints: set[int]) -> None:
        self.endpoints |= endpoints

    def renamed(self, peers: Any) -> None:
        pass


class Desk:
    def __init__(self, folder: Path, outbox: Outbox) -> None:
        self.bench = Bench(folder, FakeKernel())
        self.objects = Objects()
        self.identities = Server()
        self.ended = Ended()
        self.health: dict[int, Health] = {}
        self.networks: list[list[str]] = []
        self.publisher = Publisher(
            self.bench.engine,
            self.objects,
            IdentityAllocator(self.identities),
            outbox,
            lambda *_, **__: None,
            lambda own, others: self.networks.append([own.name, *(n.name for n in others)]),
            self.ended,
            self.health.update,
        )
        self.bench.engine.effects = self.publisher
        self.bench.complete()


@pytest.fixture
def desk(tmp_path: Path, outbox: Outbox) -> Iterator[Desk]:
    made = Desk(tmp_path, outbox)
    yield made
    made.bench.engine.stop()


PATH = "/apis/cilium.io/v2/namespaces/blue/ciliumendpoints/a"


def test_an_endpoint_is_published_with_its_pod_as_owner_and_goes_with_it(desk: Desk, outbox: Outbox) -> None:
    desk.bench.put(labelled(1, pod("a", app="a"), 300))
    settle(outbox)
    found = desk.objects.content[PATH]
    assert found["metadata"]["ownerReferences"][0]["uid"] == "uid-a"
    assert found["status"]["identity"]["id"] == 300
    assert found["status"]["networking"] == {
        "addressing": [{"ipv4": "10.244.0.11"}],
        "node": "172.30.0.2",
    }
    desk.bench.engine.call(lambda: desk.bench.engine.remove_endpoint(1))
    settle(outbox)
    assert PATH not in desk.objects.content


def test_the_successors_endpoint_on_another_node_is_not_deleted(desk: Desk, outbox: Outbox) -> None:
    desk.bench.put(labelled(1, pod("a"), 300))
    settle(outbox)
    desk.objects.content[PATH]["status"]["networking"]["node"] = OTHER.addresses[0]
    desk.bench.engine.call(lambda: desk.bench.engine.remove_endpoint(1))
    settle(outbox)
    assert PATH in desk.objects.content


def test_a_new_sandbox_of_the_same_pod_takes_over(desk: Desk, outbox: Outbox) -> None:
    desk.bench.put(labelled(1, pod("a"), 300))
    desk.bench.put(labelled(2, pod("a"), 300))
    desk.bench.engine.call(lambda: desk.bench.engine.remove_endpoint(1))
    settle(outbox)
    assert desk.objects.content[PATH]["status"]["id"] == 2


def test_an_endpoint_that_somebody_deleted_or_changed_is_written_again(desk: Desk, outbox: Outbox) -> None:
    desk.bench.put(labelled(1, pod("a"), 300))
    settle(outbox)
    del desk.objects.content[PATH]
    desk.publisher.endpoint_seen("blue/a", None)
    settle(outbox)
    assert PATH in desk.objects.content
    wrong = Endpoint(Name("blue", "a"), "uid-a", 999, ("10.244.0.11",), OWN.addresses[0])
    desk.objects.content[PATH]["status"]["identity"]["id"] = 999
    desk.publisher.endpoint_seen("blue/a", wrong)
    settle(outbox)
    assert desk.objects.content[PATH]["status"]["identity"]["id"] == 300


def test_what_a_former_agent_of_this_node_left_is_deleted(
    desk: Desk, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "ORPHAN_SECONDS", 0.01)
    left = Endpoint(Name("blue", "a"), "u", 300, ("10.244.0.77",), OWN.addresses[0])
    desk.objects.content[PATH] = {"metadata": {}, "status": {"networking": {"node": OWN.addresses[0]}}}
    desk.publisher.endpoint_seen("blue/a", left)
    settle(outbox)
    assert PATH not in desk.objects.content


def test_a_running_endpoint_takes_its_new_identity_after_the_others_know_it(
    desk: Desk, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "IDENTITY_GRACE_SECONDS", 0.1)
    endpoint = labelled(1, pod("a", app="a"), 300)
    desk.bench.put(endpoint)
    labels = {**(endpoint.labels or {}), "k8s:app": "b"}
    desk.publisher.identity_wanted(endpoint, labels)
    settle(outbox)
    made = next(iter(desk.identities.objects.values()))
    assert made["security-labels"] == labels
    assert desk.bench.engine.local[1].identity == int(made["metadata"]["name"])
    assert desk.objects.content[PATH]["status"]["identity"]["id"] == int(made["metadata"]["name"])


def test_a_policy_with_faults_gets_an_event_and_a_status_once(desk: Desk, outbox: Outbox) -> None:
    where = "/apis/cilium.io/v2/namespaces/blue/ciliumnetworkpolicies/p"
    desk.objects.content[where] = {"metadata": {"generation": 2}}
    source = PolicySource("CiliumNetworkPolicy", Name("blue", "p"), "u", 2, {})
    parsed = Parsed((), (Fault("spec.ingress[0].fromNodes", "field is not supported"),))
    desk.publisher.policy_read(source, parsed)
    settle(outbox)
    condition = desk.objects.content[where]["status"]["conditions"][0]
    assert condition["status"] == "False"
    assert "fromNodes" in condition["message"]
    events = [path for path in desk.objects.content if "/events/" in path]
    assert len(events) == 1
    seen = len(desk.objects.seen)
    desk.publisher.policy_read(source, parsed)
    settle(outbox)
    assert ("merge", f"{where}/status") not in desk.objects.seen[seen:]
    assert [path for path in desk.objects.content if "/events/" in path] == events


def test_a_table_that_is_full_is_told_by_one_event_of_its_node(desk: Desk, outbox: Outbox) -> None:
    for _ in range(3):
        desk.publisher.table_failed("ipcache", "No space left on device")
        settle(outbox)
    events = [path for path in desk.objects.content if "/events/" in path]
    assert len(events) == 1
    assert [what for what in desk.objects.seen if what[0] == "create"] == [
        ("create", events[0].rsplit("/", 1)[0])
    ]
    event = desk.objects.content[events[0]]
    assert (event["involvedObject"]["kind"], event["reason"]) == ("Node", "TableNotWritten")
    assert "ipcache" in event["message"]
    assert "No space left" in event["message"]


def test_a_status_of_an_older_version_is_not_written_over_a_newer_one(desk: Desk, outbox: Outbox) -> None:
    where = "/apis/cilium.io/v2/namespaces/blue/ciliumnetworkpolicies/p"
    desk.objects.content[where] = {"metadata": {"generation": 3}}
    desk.publisher.policy_read(PolicySource("CiliumNetworkPolicy", Name("blue", "p"), "u", 2, {}), Parsed(()))
    settle(outbox)
    assert "status" not in desk.objects.content[where]

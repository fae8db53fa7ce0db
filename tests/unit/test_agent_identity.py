"""Identities: labels that cannot be forged, one number cluster-wide, and collection that a user can stop."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import pytest

from agent.identity.allocator import IdentityAllocator, NoIdentityError, numbers
from agent.identity.gc import IdentityCollector
from agent.identity.labels import forged, identity_labels
from agent.identity.reserved import FIRST_POD_IDENTITY, LAST_POD_IDENTITY, RESERVED, Reserved, travels
from agent.model.objects import Identity, Name, Namespace, Pod
from agent.planes.kubernetes import parse
from agent.planes.kubernetes.client import ApiError


def labels_of(pod_labels: dict[str, str], namespace_labels: dict[str, str] | None = None) -> dict[str, str]:
    pod = Pod(Name("blue", "p"), "u", "n", pod_labels, "robot")
    return dict(identity_labels(pod, Namespace("blue", namespace_labels or {})))


def test_identity_labels_are_ciliums() -> None:
    assert labels_of({"app": "web"}, {"team": "b"}) == {
        "k8s:app": "web",
        "k8s:io.cilium.k8s.namespace.labels.team": "b",
        "k8s:io.cilium.k8s.policy.cluster": "default",
        "k8s:io.cilium.k8s.policy.serviceaccount": "robot",
        "k8s:io.kubernetes.pod.namespace": "blue",
    }


@pytest.mark.parametrize(
    "key",
    [
        "io.kubernetes.pod.namespace",
        "io.cilium.k8s.policy.serviceaccount",
        "io.cilium.k8s.namespace.labels.team",
        "io.cilium.k8s.policy.cluster",
    ],
)
def test_a_pod_cannot_forge_what_is_not_its_own_to_say(key: str) -> None:
    honest = labels_of({"app": "web"}, {"team": "b"})
    assert labels_of({"app": "web", key: "red"}, {"team": "b"}) == honest
    pod = Pod(Name("blue", "p"), "u", "n", {key: "red", "app": "web"}, "robot")
    assert forged(pod) == [key]


def test_a_label_that_looks_reserved_is_only_a_label() -> None:
    assert labels_of({"reserved": "host"})["k8s:reserved"] == "host"
    assert not any(key.startswith("reserved:") for key in labels_of({"reserved": "host"}))


def test_reserved_numbers_are_ciliums() -> None:
    expected = {"host": 1, "world": 2, "unmanaged": 3, "health": 4, "init": 5, "remote-node": 6}
    expected |= {"kube-apiserver": 7, "ingress": 8, "unknown": 0}
    assert {reserved.label.removeprefix("reserved:"): int(reserved) for reserved in Reserved} == expected
    assert RESERVED[6].labels == {"reserved:remote-node": ""}


def test_only_24_bits_and_no_reserved_number_but_other_nodes_travel() -> None:
    assert travels(FIRST_POD_IDENTITY)
    assert travels(LAST_POD_IDENTITY)
    assert travels(Reserved.REMOTE_NODE)
    assert not travels(Reserved.HOST)
    assert not travels(Reserved.WORLD)
    assert not travels(LAST_POD_IDENTITY + 1)


class Server:
    """CiliumIdentity objects as an API server keeps them."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.lock = threading.Lock()
        self.away = False
        self.creations = 0

    def _check(self) -> None:
        if self.away:
            raise ApiError(0, "Unreachable", "connection refused")

    def get(self, path: str) -> dict[str, Any]:
        self._check()
        with self.lock:
            found = self.objects.get(path.rpartition("/")[2])
            if found is None:
                raise ApiError(404, "NotFound", path)
            return {**found, "metadata": dict(found["metadata"])}

    def create(self, path: str, body: Any) -> dict[str, Any]:
        self._check()
        with self.lock:
            name = body["metadata"]["name"]
            if name in self.objects:
                raise ApiError(409, "AlreadyExists", name)
            self.version += 1
            self.creations += 1
            metadata = {"name": name, "uid": f"u{self.version}", "resourceVersion": str(self.version)}
            self.objects[name] = {**body, "metadata": metadata}
            return self.objects[name]

    def merge(self, path: str, body: Any) -> dict[str, Any]:
        self._check()
        with self.lock:
            found = self.objects.get(path.rpartition("/")[2])
            if found is None:
                raise ApiError(404, "NotFound", path)
            metadata = found["metadata"]
            wanted = body["metadata"].get("resourceVersion")
            if wanted is not None and wanted != metadata["resourceVersion"]:
                raise ApiError(409, "Conflict", path)
            annotations = {**metadata.get("annotations", {}), **body["metadata"].get("annotations", {})}
            self.version += 1
            metadata["annotations"] = {k: v for k, v in annotations.items() if v is not None}
            metadata["resourceVersion"] = str(self.version)
            return found

    def delete(self, path: str, body: Any = None) -> dict[str, Any]:
        self._check()
        with self.lock:
            name = path.rpartition("/")[2]
            found = self.objects.get(name)
            if found is None:
                raise ApiError(404, "NotFound", path)
            for key, value in (body or {}).get("preconditions", {}).items():
                if found["metadata"][key] != value:
                    raise ApiError(409, "Conflict", path)
            del self.objects[name]
            return {}


LABELS = {"k8s:app": "a", "k8s:io.kubernetes.pod.namespace": "blue"}


def test_two_nodes_that_meet_the_same_labels_at_once_agree_on_one_number() -> None:
    server = Server()
    found: list[Identity] = []
    gate = threading.Barrier(8)

    def one() -> None:
        allocator = IdentityAllocator(server)
        gate.wait()
        found.append(allocator.allocate(LABELS))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity.number for identity in found}) == 1
    assert server.creations == 1


def test_a_number_that_other_labels_hold_is_passed_over() -> None:
    server = Server()
    first, second, *_ = numbers(LABELS)
    server.create("", {"metadata": {"name": str(first)}, "security-labels": {"k8s:other": "x"}})
    assert IdentityAllocator(server).allocate(LABELS).number == second


def test_numbers_are_in_the_24_bits_of_pods() -> None:
    tried = list(numbers(LABELS))
    assert len(set(tried)) == len(tried)
    assert all(FIRST_POD_IDENTITY <= number <= LAST_POD_IDENTITY for number in tried)


def test_what_the_watch_has_shown_needs_no_question() -> None:
    server = Server()
    allocator = IdentityAllocator(server)
    allocator.observe("300", Identity(300, LABELS))
    server.away = True
    assert allocator.allocate(LABELS).number == 300
    allocator.observe("300", None)
    with pytest.raises(NoIdentityError):
        allocator.allocate(LABELS)


class Clock:
    def __init__(self) -> None:
        self.time = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += datetime.timedelta(seconds=seconds)


WAIT_SECONDS = 600


def collector(server: Server, clock: Clock, unused: list[int]) -> IdentityCollector:
    return IdentityCollector(server, lambda: unused, lambda *_, **__: None, WAIT_SECONDS, clock)


def test_an_unused_identity_is_deleted_in_two_steps() -> None:
    server, clock = Server(), Clock()
    number = IdentityAllocator(server).allocate(LABELS).number
    collecting = collector(server, clock, [number])
    assert collecting.run_once() == 0
    clock.advance(WAIT_SECONDS - 1)
    assert collecting.run_once() == 0
    clock.advance(2)
    assert collecting.run_once() == 1
    assert not server.objects


@pytest.mark.parametrize("knows", [True, False])
def test_whoever_takes_a_marked_identity_into_use_keeps_it(knows: bool) -> None:
    server, clock = Server(), Clock()
    number = IdentityAllocator(server).allocate(LABELS).number
    collecting = collector(server, clock, [number])
    collecting.run_once()
    user = IdentityAllocator(server)
    if knows:
        marked = parse.identity(server.objects[str(number)])
        assert marked is not None
        assert marked.marked
        user.observe(str(number), marked)
    assert user.allocate(LABELS).number == number
    clock.advance(WAIT_SECONDS + 1)
    assert collecting.run_once() == 0, "it is marked anew, not deleted"
    assert server.objects


def test_a_user_who_comes_between_reading_and_deleting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    server, clock = Server(), Clock()
    number = IdentityAllocator(server).allocate(LABELS).number
    collecting = collector(server, clock, [number])
    collecting.run_once()
    clock.advance(WAIT_SECONDS + 1)
    delete = server.delete

    def late(path: str, body: Any = None) -> dict[str, Any]:
        IdentityAllocator(server).allocate(LABELS)
        return delete(path, body)

    monkeypatch.setattr(server, "delete", late)
    assert collecting.run_once() == 0
    assert str(number) in server.objects

"""The Kubernetes plane keeps the model through everything that an API server does to its clients."""

from __future__ import annotations

import http.server
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from agent.planes.base import Change, Event, Kind, Synced
from agent.planes.kubernetes import parse, reflector
from agent.planes.kubernetes.client import Api, ApiError
from agent.planes.kubernetes.reflector import Backoff, Reflector, Resource

PATH = "/api/v1/namespaces"


def thing(name: str, version: int, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version), "labels": labels}}


class Model:
    """What a sink has heard, as the state that follows from it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.events: list[Event] = []
        self.synced = 0
        self.changed = threading.Condition()

    def sink(self, events: Any) -> None:
        with self.changed:
            for event in events:
                self.events.append(event)
                if isinstance(event, Synced):
                    self.synced += 1
                elif event.value is None:
                    del self.values[event.key]
                else:
                    self.values[event.key] = event.value
            self.changed.notify_all()

    def wait(self, holds: Callable[[], bool], seconds: float = 15.0) -> None:
        with self.changed:
            assert self.changed.wait_for(holds, seconds), (self.values, self.events[-5:])


class Script:
    """An API server that answers each list and each watch with what the test has lined up."""

    def __init__(self) -> None:
        self.lists: list[Any] = []
        self.watches: list[Any] = []
        self.queries: list[dict[str, str]] = []

    def get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        self.queries.append(dict(query or {}))
        answer = self.lists.pop(0)
        if isinstance(answer, ApiError):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def watch(self, path: str, query: dict[str, str], idle_seconds: float) -> Iterator[dict[str, Any]]:
        self.queries.append({**query, "watch": "true"})
        events = self.watches.pop(0)
        if isinstance(events, ApiError):
            raise events
        yield {"type": "BOOKMARK", "object": {}}
        for event in events:
            if isinstance(event, ApiError):
                raise event
            yield event


def page(version: int, *items: dict[str, Any], more: str = "") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version), "continue": more}, "items": list(items)}


class Run:
    """A reflector that goes through a script to its end."""

    def __init__(self, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reflector, "FIRST_WAIT", 0.0)
        monkeypatch.setattr(reflector, "LONGEST_WAIT", 0.0)
        self.script = script
        self.model = Model()
        self.notes: list[tuple[str, str]] = []
        resource = Resource(Kind.NAMESPACE, PATH, parse.namespace)
        self.reflector = Reflector(
            script, resource, self.model.sink, lambda *note: self.notes.append(note), random.Random(1)
        )

    def go(self) -> Model:
        """Until the script has no more answers."""
        with pytest.raises(IndexError):
            self.reflector.run(threading.Event())
        return self.model


def names(model: Model) -> set[str]:
    return set(model.values)


def test_a_list_in_pages_is_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    script.lists = [page(5, thing("a", 1), more="next"), page(5, thing("b", 2))]
    model = Run(script, monkeypatch).go()
    assert names(model) == {"a", "b"}
    assert model.synced == 1
    assert script.queries[1]["continue"] == "next"
    assert script.queries[2]["resourceVersion"] == "5"


def test_watch_events_follow_the_list_and_a_new_watch_goes_on_where_the_last_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script()
    script.lists = [page(5, thing("a", 1))]
    script.watches = [
        [
            {"type": "ADDED", "object": thing("b", 6)},
            {"type": "MODIFIED", "object": thing("a", 7, team="x")},
            {"type": "DELETED", "object": thing("b", 8)},
            {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}},
        ],
        [],
    ]
    model = Run(script, monkeypatch).go()
    assert names(model) == {"a"}
    assert model.values["a"].labels == {"team": "x"}
    assert [q["resourceVersion"] for q in script.queries if "watch" in q] == ["5", "20", "20"]


@pytest.mark.parametrize("how", ["event", "status"])
def test_a_history_that_is_gone_is_listed_again_and_what_vanished_meanwhile_is_deleted(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
    script = Script()
    script.lists = [page(5, thing("a", 1), thing("b", 2)), page(90, thing("b", 2), thing("c", 80))]
    script.watches = [[gone] if how == "event" else ApiError(410, "Expired", "too old")]
    model = Run(script, monkeypatch).go()
    assert names(model) == {"b", "c"}
    assert model.synced == 1
    changes = [e.key for e in model.events if isinstance(e, Change)]
    assert changes.count("b") == 1, "what did not change is not reported again"


def test_pages_that_expire_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    script.lists = [
        page(5, thing("a", 1), more="next"),
        ApiError(410, "Expired", "the continue token is too old"),
        page(9, thing("z", 9)),
    ]
    assert names(Run(script, monkeypatch).go()) == {"z"}


def test_through_an_absence_the_last_model_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    away = ApiError(0, "Unreachable", "connection refused")
    script = Script()
    script.lists = [away, away, page(5, thing("a", 1))]
    script.watches = [[away], away, away, away, [{"type": "ADDED", "object": thing("b", 9)}]]
    run = Run(script, monkeypatch)
    model = run.go()
    assert names(model) == {"a", "b"}
    assert not [e for e in model.events if isinstance(e, Change) and e.value is None]
    assert [note[0] for note in run.notes] == ["fault", "recovered", "fault", "recovered"]


def test_an_object_that_cannot_be_read_keeps_its_last_readable_value(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"metadata": {"name": "a", "resourceVersion": "7", "labels": 5}}
    script = Script()
    script.lists = [page(5, thing("a", 1, team="x"))]
    script.watches = [[{"type": "MODIFIED", "object": broken}]]
    run = Run(script, monkeypatch)
    assert run.go().values["a"].labels == {"team": "x"}
    assert [note[0] for note in run.notes] == ["unreadable"]


def test_waits_grow_to_a_limit_and_are_spread() -> None:
    waits = [Backoff(random.Random(seed)) for seed in range(50)]
    first = [backoff.next() for backoff in waits]
    for _ in range(20):
        last = [backoff.next() for backoff in waits]
    assert len(set(first)) > 40
    assert max(first) <= reflector.FIRST_WAIT
    assert reflector.LONGEST_WAIT / 2 <= min(last) <= max(last) <= reflector.LONGEST_WAIT


# The client, against a real HTTP server


class Server:
    """An HTTP API server whose answers a test writes; it can go away and come back on the same port."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.port = 0
        self._server: http.server.ThreadingHTTPServer | None = None

    def start(self) -> None:
        answers = self.answers

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                watching = "watch" in parse_qs(urlsplit(self.path).query)
                answers["watch" if watching else "list"](self)

            do_POST = do_PATCH = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        cluster = {"server": f"http://127.0.0.1:{self.port}"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(document))
        return path


def reply(handler: http.server.BaseHTTPRequestHandler, status: int, document: object) -> None:
    body = json.dumps(document).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def begin_stream(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()


def chunk(handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
    handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    handler.wfile.flush()


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server()
    serving.start()
    yield serving
    serving.stop()


def test_errors_carry_the_servers_reason(server: Server, tmp_path: Path) -> None:
    status = {"kind": "Status", "reason": "AlreadyExists", "message": "it is there"}
    server.answers["list"] = lambda handler: reply(handler, 409, status)
    api = Api(server.kubeconfig(tmp_path))
    with pytest.raises(ApiError) as caught:
        api.create("/x", {})
    assert (caught.value.code, caught.value.reason) == (409, "AlreadyExists")


def test_a_watch_gives_events_however_they_are_cut_into_pieces(server: Server, tmp_path: Path) -> None:
    text = json.dumps({"type": "ADDED", "object": thing("a", 1)}).encode() + b"\n"

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        begin_stream(handler)
        for part in (text[:7], text[7:] + text[:1], text[1:]):
            chunk(handler, part)
        handler.wfile.write(b"0\r\n\r\n")

    server.answers["watch"] = stream
    api = Api(server.kubeconfig(tmp_path))
    events = list(api.watch(PATH, {}, 5.0))
    assert [event["type"] for event in events] == ["BOOKMARK", "ADDED", "ADDED"]


def test_a_server_that_falls_silent_is_noticed(server: Server, tmp_path: Path) -> None:
    def silent(handler: http.server.BaseHTTPRequestHandler) -> None:
        begin_stream(handler)
        threading.Event().wait(3)

    server.answers["watch"] = silent
    api = Api(server.kubeconfig(tmp_path))
    with pytest.raises(ApiError, match="watch"):
        list(api.watch(PATH, {}, 0.2))


def test_an_api_server_that_goes_away_and_comes_back_is_followed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "LONGEST_WAIT", 0.2)
    state = {"items": [thing("a", 1)]}
    server.answers["list"] = lambda handler: reply(
        handler, 200, {"metadata": {"resourceVersion": "5"}, "items": state["items"]}
    )

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        begin_stream(handler)
        while server._server is not None:
            chunk(handler, b"\n")
            time.sleep(0.02)
        handler.connection.shutdown(socket.SHUT_RDWR)

    server.answers["watch"] = stream
    model = Model()
    notes: list[tuple[str, str]] = []
    api = Api(server.kubeconfig(tmp_path))
    resource = Resource(Kind.NAMESPACE, PATH, parse.namespace)
    stop = threading.Event()
    follower = Reflector(api, resource, model.sink, lambda *note: notes.append(note))
    thread = threading.Thread(target=follower.run, args=(stop,), daemon=True)
    thread.start()
    model.wait(lambda: names(model) == {"a"})
    server.stop()
    deadline = time.monotonic() + 15
    while not notes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert notes[0][0] == "fault"
    assert names(model) == {"a"}
    # The restored server has another history.
    state["items"] = [thing("b", 1)]
    server.answers["watch"] = lambda handler: reply(handler, 410, {"reason": "Expired"})
    server.start()
    model.wait(lambda: names(model) == {"b"})
    stop.set()
    server.stop()
    thread.join(timeout=15)

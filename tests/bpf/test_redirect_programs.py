"""Real programs under redirect: they work as by plain TCP, and their connections are accelerated.

Each server gets the same requests twice, through pods' own namespaces: redirected, and by plain TCP. Sizes
go from one byte to more than the budget of unread bytes, connections are kept and made anew.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bpf.conftest import Pods
from tests.bpf.fabric import Pod
from tests.bpf.programs import ASYNCIO, HAPROXY, NGINX, NODE, Programs, root_of_programs
from tests.bpf.redirecting import redirect_config
from tests.bpf.sandbox import Node
from tests.bpf.talking import receive
from tests.sizes import SIZES

PORT = 8080
NEW_CONNECTION_EVERY = 20  # requests
BODIES = {name: os.urandom(size) for name, size in {"s": 1, "m": 700, "l": 20_000, "xl": 1_500_000}.items()}

Ask = Callable[[socket.socket, str], None]


@pytest.fixture(scope="module")
def root() -> Path:
    return root_of_programs()


@pytest.fixture
def running(root: Path, tmp_path: Path, pods: Pods) -> Iterator[Programs]:
    """Starts programs; they end before their pods go."""
    with Programs(root, tmp_path) as made:
        yield made


def echo(end: socket.socket, name: str) -> None:
    """The body there and back, in parts that fit between the two ends."""
    body = BODIES[name]
    for start in range(0, len(body), 30_000):
        part = body[start : start + 30_000]
        end.sendall(part)
        assert receive(end, len(part)) == part


def _http(end: socket.socket, method: str, path: str, body: bytes | None) -> bytes:
    connection = http.client.HTTPConnection("server")
    connection.sock = end
    connection.request(method, path, body)
    response = connection.getresponse()
    data = response.read()
    assert response.status == 200, data
    connection.sock = None
    return data


def http_get(end: socket.socket, name: str) -> None:
    assert _http(end, "GET", f"/{name}", None) == BODIES[name]


def http_echo(end: socket.socket, name: str) -> None:
    assert _http(end, "POST", "/", BODIES[name]) == BODIES[name]


def httpbin(end: socket.socket, name: str) -> None:
    """What was posted comes back within a JSON document."""
    answer = json.loads(_http(end, "POST", "/post", BODIES[name]))
    assert base64.urlsafe_b64decode(answer["data"].partition(";base64,")[2]) == BODIES[name]


def redis(end: socket.socket, name: str) -> None:
    body = BODIES[name]
    end.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n" % (len(body), body))
    assert receive(end, 5) == b"+OK\r\n"
    end.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
    expected = b"$%d\r\n%s\r\n" % (len(body), body)
    assert receive(end, len(expected)) == expected


def serve(running: Programs, pods: Pods, node: Node, name: str) -> tuple[Pod, Ask]:
    """Start the program in a pod; the pod to ask and how."""
    pod = pods(node, 1002)
    at = f"{pod.address}:{PORT}"
    files = {f"www/{name}": body for name, body in BODIES.items()}
    if name in {"nginx", "haproxy"}:
        files["nginx.conf"] = NGINX.format(at=at).encode()
        running.start(pod, PORT, ["nginx", "-e", "/tmp/error", "-c", "/tmp/nginx.conf"], files)
        if name == "nginx":
            return pod, http_get
        front = pods(node, 1003)
        config = HAPROXY.format(at=f"{front.address}:{PORT}", backend=at).encode()
        running.start(front, PORT, ["haproxy", "-db", "-f", "/tmp/haproxy.cfg"], {"haproxy.cfg": config})
        return front, http_get
    host, _, port = at.partition(":")
    java = "java -Dsun.net.httpserver.nodelay=true -Xmx64m -m jdk.httpserver -o none -d /tmp/www"
    command: dict[str, tuple[list[str], Ask]] = {
        "redis": (
            [*f"redis-server --bind {host} --port {port} --protected-mode no --save".split(), ""],
            redis,
        ),
        "node": (["node", "-e", NODE, at], http_echo),
        "go": (f"go-httpbin -max-body-size 8000000 -host {host} -port {port}".split(), httpbin),
        "java-nio": (f"{java} -b {host} -p {port}".split(), http_get),
        "asyncio": (["python3", "-c", ASYNCIO, at], echo),
    }
    words, ask = command[name]
    running.start(pod, PORT, words, files)
    return pod, ask


@pytest.mark.parametrize("name", ["nginx", "haproxy", "redis", "node", "go", "java-nio", "asyncio"])
def test_real_programs_work_as_by_plain_tcp(
    name: str, running: Programs, pods: Pods, node: Node, client: Pod
) -> None:
    pod, ask = serve(running, pods, node, name)
    for redirected in (True, False):
        with redirect_config(node, on=redirected):
            _ask_all(node, client, pod, ask, redirected)


def _ask_all(node: Node, client: Pod, server: Pod, ask: Ask, redirected: bool) -> None:
    sizes = itertools.cycle(["s", "m", "s", "l", "m"])
    for number in range(0, SIZES.program_requests, NEW_CONNECTION_EVERY):
        with node.in_cgroup():
            end = client.namespace.socket(socket.SOCK_STREAM)
        with end:
            end.settimeout(30)
            # Or plain TCP waits for the peer's delayed ACK between a request's head and its body.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.connect((str(server.address), PORT))
            for _ in range(NEW_CONNECTION_EVERY):
                ask(end, next(sizes))
            if number == 0:
                ask(end, "xl")
            port = end.getsockname()[1]
            known = [item for item in node.maps.redirect.connections() if item.client_port == port]
            assert [item.accelerated for item in known if item.client == client.address] == [redirected]

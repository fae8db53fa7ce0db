"""The ways from the client to the server, and the pods and settings that make them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from lab.measure.network import PACKETS_ONLY
from lab.measure.workload import Workload, container, python
from lab.render import RenderedNode

_CONFIGS = Path(__file__).parent / "configs"

ECHO, WEB, PAIR = 11111, 8080, 7000
UNIX_SOCKET = "/tmp/pair"  # noqa: S108
#: sockperf sends no message larger than a UDP datagram.
LARGEST = 65507
#: Bytes of the files that the web server has.
FILES = (64, 256, 1024, 4096, 16384, 65536)

BRIDGE, NO_PROXY, IN_KERNEL, WITH_POLICY = "bridge", "no proxy", "in-kernel", "in-kernel, policy"
UNIX = "UNIX socket"

_ENVOY = ("envoy", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")


@dataclass(frozen=True)
class Way:
    """A path by its name: the pod that the client connects to, at which ports for TCP and for HTTP.

    `accelerated`: whether the client's connection is to be redirected; it is checked.
    """

    name: str
    pod: str
    tcp: int
    http: int
    accelerated: bool = False


WAYS = (
    Way(BRIDGE, "", ECHO, WEB),
    Way(NO_PROXY, "server", ECHO, WEB),
    Way(IN_KERNEL, "server-redirected", ECHO, WEB, accelerated=True),
    Way(WITH_POLICY, "server-guarded", ECHO, WEB, accelerated=True),
    Way("Envoy", "proxies", 10001, 10002),
    Way("HAProxy", "proxies", 10011, 10012),
    Way("nginx", "proxies", 10021, 10022),
)
PROXIES = ("Envoy", "HAProxy", "nginx")
SERVERS = ("server", "server-redirected", "server-guarded")


def config(name: str, **values: str) -> str:
    """The text of a file in `configs/` with its `$names` filled in."""
    return Template((_CONFIGS / name).read_text(encoding="utf-8")).substitute(values)


def config_map(name: str, data: Mapping[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(data)}


def echo_command() -> list[str]:
    """Sends back what sockperf asks to have back."""
    return ["sockperf", "server", "--tcp", "-i", "0.0.0.0", "-p", str(ECHO)]  # noqa: S104


def web_command() -> list[str]:
    """Makes the files, then serves them. In the foreground."""
    sizes = " ".join(map(str, FILES))
    made = f"mkdir -p /tmp/www && for n in {sizes}; do head -c $n /dev/zero | tr '\\0' x > /tmp/www/$n; done"
    return ["sh", "-c", f"{made}; exec nginx -g 'daemon off;' -c /etc/measure/web.conf"]


def servers_and_client(pods: Workload, node: RenderedNode) -> list[dict[str, Any]]:
    """The objects of all but the proxies, which must know the server's address."""
    documents = [
        config_map("servers", {"web.conf": config("web.conf")}),
        _policy(),
        pods.pod("client", node, [container("client", ["sleep", "infinity"])]),
    ]
    for name in SERVERS:
        inner = [
            _with_files(container("echo", echo_command())),
            _with_files(container("web", web_command())),
            _with_files(container("pair", python("pingpong.py", "serve", str(PAIR), UNIX_SOCKET))),
        ]
        notes = PACKETS_ONLY if name == "server" else {}
        documents.append(pods.pod(name, node, inner, annotations=notes, **_files("servers")))
    return documents


def proxies(pods: Workload, node: RenderedNode, server: str) -> list[dict[str, Any]]:
    """The objects of the third pod. Its connections, to both sides, stay with TCP."""
    names = ("envoy.yaml", "haproxy.cfg", "nginx.conf")
    inner = [
        container("envoy", [*_ENVOY, "-c", "/etc/measure/envoy.yaml"]),
        container("haproxy", ["haproxy", "-db", "-f", "/etc/measure/haproxy.cfg"]),
        container("nginx", ["nginx", "-g", "daemon off;", "-c", "/etc/measure/nginx.conf"]),
    ]
    inner = [_with_files(one) for one in inner]
    return [
        config_map("proxies", {name: config(name, server=server) for name in names}),
        pods.pod("proxies", node, inner, annotations=PACKETS_ONLY, **_files("proxies")),
    ]


def _policy() -> dict[str, Any]:
    """Guards one server: the client may, nobody else."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "guard"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server-guarded"}},
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                    "ports": [{"port": port, "protocol": "TCP"} for port in (ECHO, WEB, PAIR)],
                }
            ],
        },
    }


def _with_files(inner: dict[str, Any]) -> dict[str, Any]:
    return {**inner, "volumeMounts": [{"name": "files", "mountPath": "/etc/measure"}]}


def _files(name: str) -> dict[str, Any]:
    return {"volumes": [{"name": "files", "configMap": {"name": name}}]}

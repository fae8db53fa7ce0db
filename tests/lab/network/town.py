"""The pods that the network's tests share, in two namespaces on two nodes; how to ask and disturb them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.render import Rendered, RenderedNode
from tests.lab.conftest import connect
from tests.lab.pods import Pods
from tests.lab.waiting import until

INSIDE = Path(__file__).parent / "inside"
NAMESPACES = {"blue": {"team": "b"}, "red": {"team": "r", "env": "prod"}}
PORTS = (80, 81, 443, 8080)
METRICS = "http://127.0.0.1:9964"
_COUNTER = re.compile(r'^underpass_packets_total\{place="([^"]+)",reason="([^"]+)"\} (\S+)$', re.MULTILINE)

Target = tuple[str, str, int]  # protocol, address, port


def program(name: str, *arguments: str) -> list[str]:
    """The command line of a program of `inside/`."""
    return ["python3", "-u", "-c", (INSIDE / f"{name}.py").read_text(), *arguments]


@dataclass(frozen=True)
class Resident:
    """A pod of the town. `ports` are its named ports: (name, protocol) -> number."""

    name: str
    namespace: str
    node: RenderedNode
    labels: Mapping[str, str]
    account: str = "default"
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)


def server(pods: Pods, ports: Sequence[int] = PORTS, **extra: Any) -> dict[str, Any]:
    """The container of a pod that answers on `ports`; `extra` goes into the container."""
    return {
        "name": "server",
        "image": pods.image,
        "imagePullPolicy": "Never",
        "command": program("server", *map(str, ports)),
        "readinessProbe": {"tcpSocket": {"port": ports[0]}, "periodSeconds": 1},
        **extra,
    }


class Town:
    """The residents, with their addresses."""

    def __init__(self, lab: Rendered, spaces: Mapping[str, Pods], residents: Sequence[Resident]) -> None:
        self.lab = lab
        self.spaces = spaces
        self.residents = {resident.name: resident for resident in residents}
        self.address: dict[str, str] = {}

    def settle(self) -> None:
        """Start all residents and wait until they serve."""
        for one in self.residents.values():
            pods = self.spaces[one.namespace]
            ports = [
                {"name": name, "protocol": protocol, "containerPort": number}
                for (name, protocol), number in one.ports.items()
            ]
            container = server(pods, ports=PORTS) | {"ports": ports}
            pods.run(
                one.name,
                one.node.name,
                labels={**one.labels},
                serviceAccountName=one.account,
                containers=[container],
            )
        for pods in self.spaces.values():
            pods.ready()
        self.address = {name: self.pods(name).address(name) for name in self.residents}

    def pods(self, name: str) -> Pods:
        return self.spaces[self.residents[name].namespace]

    # Asking

    def probe(self, client: str, targets: Sequence[Target], limit: float = 1.0) -> list[str]:
        """What `client` (a resident or a node) gets from each target; see inside/probe.py."""
        command = program("probe", str(limit), json.dumps(targets))
        if client in self.residents:
            done = self.pods(client).exec(client, command)
            assert done.status == 0, done.stderr
            return list(json.loads(done.stdout))
        return list(json.loads(ask(self.lab, client, command)))

    def probe_all(self, wanted: Mapping[str, Sequence[Target]], limit: float = 1.0) -> dict[str, list[str]]:
        """`probe` for many clients at the same time."""
        with ThreadPoolExecutor(len(wanted)) as pool:
            answers = pool.map(lambda item: self.probe(item[0], item[1], limit), wanted.items())
            return dict(zip(wanted, answers, strict=True))

    def came(self, name: str, port: int) -> list[tuple[str, int, str]]:
        """What arrived at a port of a resident: (protocol, port, peer's address)."""
        return [one for one in came(self.pods(name), name) if one[1] == port]

    # Traffic

    @contextmanager
    def flowing(self, wanted: Mapping[str, Sequence[tuple[str, str, int]]]) -> Iterator[list[dict[str, Any]]]:
        """Keep flows going (client -> [(kind, address, port)]); the list is filled at the end."""
        folder = f"/tmp/flows-{time.monotonic_ns()}"
        for client, flows in wanted.items():
            command = program("flows", folder, json.dumps(flows))
            start = f'mkdir {folder}; setsid "$@" >{folder}/log 2>&1 </dev/null &'
            done = self.pods(client).exec(client, ["sh", "-c", start, "sh", *command])
            assert done.status == 0, done.stderr
        results: list[dict[str, Any]] = []
        try:
            yield results
        finally:
            for client in wanted:
                self.pods(client).exec(client, ["touch", f"{folder}/stop"])
            for client in wanted:
                results.extend(
                    {"client": client, **flow}
                    for flow in json.loads(
                        until(lambda c=client: self._result(c, folder), f"the flows of {client} end", 40)  # type: ignore[misc]
                    )
                )

    def _result(self, client: str, folder: str) -> str:
        return self.pods(client).exec(client, ["cat", f"{folder}/result"]).stdout


def came(pods: Pods, name: str) -> list[tuple[str, int, str]]:
    """What arrived at a pod that runs inside/server.py: (protocol, port, peer's address)."""
    lines = pods.exec(name, ["cat", "/tmp/came"]).stdout.splitlines()
    return [(p, int(port), peer) for p, port, peer in (line.split() for line in lines)]


def ask(lab: Rendered, node: str, command: Sequence[str], limit: float = 120) -> str:
    """Run a command on a node and return what it printed."""
    import shlex

    done = subprocess.run(
        ["ssh", "-F", str(lab.folder / "ssh_config"), node, shlex.join(command)],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, f"{node}: {' '.join(command)[:200]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def counted(lab: Rendered, node: str) -> dict[tuple[str, str], int]:
    """A node's packet counters: (reason, place) -> packets."""
    text = ask(lab, node, ["curl", "-sf", f"{METRICS}/metrics"])
    return {(reason, place): int(float(count)) for place, reason, count in _COUNTER.findall(text)}


@contextmanager
def reason(lab: Rendered, node: str, name: str) -> Iterator[None]:
    """Inside, at least one packet must be counted on `node` under the reason `name`."""

    def total() -> int:
        return sum(count for (one, _), count in counted(lab, node).items() if one == name)

    before = total()
    yield
    until(lambda: total() > before, f"{node} counts a packet under {name}", 10)


def agents_ready(lab: Rendered, seconds: float = 60) -> None:
    """Wait until the agents of all nodes serve."""
    for node in lab.nodes:
        until(
            lambda name=node.name: connect(lab, lab.node(name)).run(f"curl -sf {METRICS}/healthz").rc == 0,  # type: ignore[misc]
            f"the agent of {node.name} is ready",
            seconds,
        )


CONFIG = "/etc/underpass/agent.json"
_CHANGE = (
    "import json, sys; d = json.load(open(sys.argv[1])); d.update(json.loads(sys.argv[2])); "
    "json.dump(d, open(sys.argv[1], 'w'))"
)


@contextmanager
def configured(lab: Rendered, **values: int) -> Iterator[None]:
    """Inside, the agents of all nodes run with these settings; they are restarted before and after."""
    try:
        for node in lab.nodes:
            ask(lab, node.name, ["cp", "-p", CONFIG, f"{CONFIG}.kept"])
            ask(lab, node.name, ["python3", "-c", _CHANGE, CONFIG, json.dumps(values)])
            ask(lab, node.name, ["systemctl", "restart", "underpass-agent"])
        agents_ready(lab)
        yield
    finally:
        back = f"test ! -e {CONFIG}.kept || mv {CONFIG}.kept {CONFIG}; systemctl restart underpass-agent"
        for node in lab.nodes:
            ask(lab, node.name, ["sh", "-c", back])
        agents_ready(lab)


def underpass(lab: Rendered, node: str, *arguments: str) -> Any:
    """The answer of the node command, as data."""
    return json.loads(ask(lab, node, ["underpass", *arguments, "-o", "json"]))

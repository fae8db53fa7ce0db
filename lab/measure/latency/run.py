"""Measures: pods on one node, interleaved rounds, each path checked for being what it claims."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from lab.cluster import Cluster
from lab.errors import ExitCode, die
from lab.measure import tools
from lab.measure.latency import paths, streams
from lab.measure.latency.paths import BRIDGE, IN_KERNEL, NO_PROXY, PROXIES, UNIX, WAYS, WITH_POLICY, Way
from lab.measure.latency.result import FREE, GRAPH_SIZE, MODES, ONE_CPU, Row
from lab.measure.plain import ADDRESSES, Plain, plain
from lab.measure.shell import Shell
from lab.measure.workload import Workload, inside, node_shell, workload
from lab.render import Rendered, RenderedNode
from lab.steps import Steps

NAMESPACE = "underpass-latency"

#: Seconds that sockperf waits, connected, before it sends.
_SOCKPERF_WAITS = 2.0

#: On a machine that stood still meanwhile, sockperf has nothing to tell of a second; then it is asked again.
_TRIES = 3

_WRK_SCRIPT = "/tmp/tail.lua"  # noqa: S108


@dataclass(frozen=True)
class Size:
    """How much is measured; 0 rounds leave a part out. `seconds` are those of one measurement. A stream runs
    for `stream_settle` before: so long it takes until its sender may have left redirect.

    `parts`: those that are measured if nobody asks for others.
    """

    rounds: int
    seconds: int
    http_rounds: int
    sweep_rounds: int
    sizes: tuple[int, ...]
    connections: tuple[int, ...]
    modes: tuple[str, ...] = MODES
    stream_rounds: int = 1
    stream_sizes: tuple[int, ...] = (64, 4096, 16384, 65536)
    stream_settle: int = 7
    parts: tuple[str, ...] = ("graph",)


#: Part -> the field that holds its rounds.
PARTS = {"graph": "rounds", "sizes": "sweep_rounds", "streams": "stream_rounds"}

TINY = Size(1, 1, 1, 0, (), (), stream_sizes=(4096,), stream_settle=0)
QUICK = Size(3, 1, 1, 0, (), (), (FREE,), stream_rounds=3)
USUAL = Size(9, 1, 5, 1, (64, 4096, 65507), (10, 100, 1000), stream_rounds=3, parts=tuple(PARTS))
FULL = Size(
    15, 2, 9, 5, (64, 256, 1024, 4096, 16384, 65507), (10, 100, 1000),
    stream_rounds=9, stream_sizes=(64, 256, 1024, 4096, 16384, 65536), parts=tuple(PARTS),
)  # fmt: skip


def only(size: Size, parts: Sequence[str], rounds: int | None = None) -> Size:
    """`size` without the rounds of the parts that are not among `parts` (empty: of those that are its own).

    `rounds`: another number of them, of the graph, or of the other parts where it is not measured.
    """
    wanted = parts or size.parts
    counts: dict[str, Any] = {
        name: getattr(size, name) if part in wanted else 0 for part, name in PARTS.items()
    }
    for part in ("graph",) if "graph" in wanted else wanted:
        counts[PARTS[part]] = rounds or counts[PARTS[part]]
    return replace(size, parts=tuple(wanted), **counts)


@dataclass
class Outcome:
    """The rows; how each path was found to be (`accelerated`, None where the node does not tell); notes."""

    rows: list[Row] = field(default_factory=list)
    checked: dict[str, bool | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class _Bench:
    """What the measurements need at hand."""

    client: Shell
    plain_client: Shell
    server: Shell
    node: Shell
    base: Plain
    addresses: dict[str, str]
    usage: list[str]
    ways: tuple[Way, ...] = WAYS

    def of(self, way: Way) -> tuple[Shell, str]:
        if way.name == BRIDGE:
            return self.plain_client, ADDRESSES["b"]
        return self.client, self.addresses[way.pod]

    def cpu(self) -> float:
        """Microseconds of CPU that the pods have used."""
        numbers = self.node.ask(f"cat {' '.join(self.usage)}").split()
        if "usage_usec" in numbers:
            return float(sum(int(numbers[n + 1]) for n, word in enumerate(numbers) if word == "usage_usec"))
        return sum(map(int, numbers)) / 1000


def measure(lab: Rendered, cluster: Cluster, steps: Steps, size: Size, names: Sequence[str]) -> Outcome:
    """Measure the paths called `names` (all if empty) on the last node of the lab."""
    node = lab.nodes[-1]
    outcome = Outcome()
    if not (names or size.rounds or size.sweep_rounds):
        names = streams.PATHS
    with workload(lab, cluster, NAMESPACE) as pods, ExitStack() as stack:
        with steps.step("pods", "Start client, servers and proxies"):
            bench = _bench(lab, pods, node, stack)
            if size.stream_rounds:
                _serve_streams(pods, bench, stack)
        with steps.step("check", "Check that each path is what it claims"):
            bench.ways = tuple(way for way in WAYS if not names or way.name in names)
            _check(pods, bench, outcome)
            outcome.versions = _versions(bench)
        for mode in size.modes:
            with steps.step(mode.replace(" ", "-"), f"Measure on {mode}") as step:
                if mode == ONE_CPU:
                    _pin(bench, pods)
                for number in range(size.rounds):
                    step.say(f"round {number + 1} of {size.rounds}")
                    outcome.rows += _round(bench, mode, number, size)
                for number in range(size.sweep_rounds):
                    step.say(f"sizes and connections, round {number + 1} of {size.sweep_rounds}")
                    outcome.rows += _sweep(bench, mode, number, size)
                for number in range(size.stream_rounds):
                    step.say(f"streams, round {number + 1} of {size.stream_rounds}")
                    outcome.rows += _streams(pods, bench, mode, number, size)
    return outcome


def _bench(lab: Rendered, pods: Workload, node: RenderedNode, stack: ExitStack) -> _Bench:
    pods.apply(*paths.servers_and_client(pods, node))
    pods.ready("client", *paths.SERVERS)
    pods.apply(*paths.proxies(pods, node, pods.field("server", "status.podIP")))
    pods.ready("proxies")
    names = ("client", *paths.SERVERS, "proxies")
    addresses = {name: pods.field(name, "status.podIP") for name in names}
    uids = [pods.field(name, "metadata.uid") for name in names]
    client = stack.enter_context(pods.shell("client"))
    server = stack.enter_context(pods.shell("server", "pair"))
    shell = stack.enter_context(node_shell(lab, node))
    mtu = int(client.ask("cat /sys/class/net/eth0/mtu"))
    base = stack.enter_context(plain(lab, node, pods.field("server", "metadata.uid"), mtu))
    base.serve("b", paths.echo_command())
    base.serve("b", paths.web_command())
    client.ask(f"cat > /tmp/pingpong.py <<'END'\n{inside('pingpong.py')}\nEND\nulimit -n 16384")
    server.ask(f"cat > /tmp/pingpong.py <<'END'\n{inside('pingpong.py')}\nEND")
    plain_client = stack.enter_context(base.shell("a"))
    for shell_ in (client, plain_client):
        shell_.ask(f"cat > {_WRK_SCRIPT} <<'END'\n{tools.WRK_SCRIPT}\nEND")
    bench = _Bench(client, plain_client, server, shell, base, addresses, _usage_files(shell, uids))
    for way in WAYS:
        asks, address = bench.of(way)
        for port in (way.tcp, way.http):
            _until_open(asks, address, port)
    return bench


def _serve_streams(pods: Workload, bench: _Bench, stack: ExitStack) -> None:
    """Their readers, in the pods of the two paths that they take; placed before any pod is put on one CPU."""
    streams.place(bench.client)
    for way in (way for way in WAYS if way.name in streams.PATHS):
        streams.serve(stack.enter_context(pods.shell(way.pod, "pair")))
        for port in streams.PORTS.values():
            _until_open(bench.client, bench.addresses[way.pod], port)


def _until_open(shell: Shell, address: str, port: int) -> None:
    words = f"until : 2>/dev/null </dev/tcp/{address}/{port}; do sleep 0.1; done"
    shell.ask(f"timeout 20 bash -c {shlex.quote(words)}", timeout=25)


def _usage_files(node: Shell, uids: Sequence[str]) -> list[str]:
    """The files that tell the pods' CPU time, for cgroup v1 and v2."""
    files = []
    for uid in uids:
        for file in ("cpuacct.usage", "cpu.stat"):
            found = node.ask(f"find /sys/fs/cgroup -path '*pod{uid}/{file}'", fails=True).split()
            found = [path for path in found if file == "cpuacct.usage" or "unified" not in path]
            if found:
                files.append(found[0])
                break
    if len(files) != len(uids):
        die(
            "the node does not tell the CPU time of its pods",
            hint="see /sys/fs/cgroup there",
            code=ExitCode.NODE,
        )
    return files


def _check(pods: Workload, bench: _Bench, outcome: Outcome) -> None:
    """Ask the node, while each path is in use, whether its connection is accelerated."""
    kept = []
    for way in bench.ways:
        found = None if way.name == BRIDGE else _accelerated(pods, bench, way)
        if found is None and way.accelerated:
            outcome.notes.append(f"{way.name}: left out: this node cannot tell whether it is accelerated")
            continue
        if found is not None and found != way.accelerated:
            if not way.accelerated:
                die(
                    f"the path {way.name} is to go by TCP, and is accelerated",
                    hint="`underpass explain` on the node tells why",
                    code=ExitCode.NOT_VERIFIED,
                )
            outcome.notes.append(f"{way.name}: left out: its connections are not accelerated on this node")
            continue
        outcome.checked[way.name] = found
        kept.append(way)
    bench.ways = tuple(kept)


def _accelerated(pods: Workload, bench: _Bench, way: Way) -> bool | None:
    """What the node says of a path while it is in use, of a proxy's both sides; None if it cannot tell."""
    shell, address = bench.of(way)
    shell.ask(f"(sockperf ping-pong --tcp -i {address} -p {way.tcp} -m {GRAPH_SIZE} -t 2 >/tmp/check 2>&1 &)")
    legs = [("client", way.pod, way.tcp)]
    if way.name in PROXIES:
        legs.append((way.pod, "server", paths.ECHO))
    deadline = time.monotonic() + 2 * _SOCKPERF_WAITS
    while True:
        told = []
        for source, target, port in legs:
            ends = f"{pods.namespace}/{source} {pods.namespace}/{target} --port {port}"
            answer = bench.node.ask(f"underpass explain {ends} -o json 2>&1", fails=True)
            if not answer.strip().startswith("{"):
                return None  # no such command, or no agent
            told.append(accelerated(answer))
        if None not in told or time.monotonic() > deadline:
            return None if None in told else any(told)
        time.sleep(0.1)


def accelerated(answer: str) -> bool | None:
    """Whether `underpass explain` shows a connection whose messages go from socket to socket.

    None where that is not told: no connection yet, none that has carried a message, or no answer at all.
    """
    try:
        connections: list[dict[str, Any]] = json.loads(answer)["connections"]
        ways = [one["from_client"] for one in connections if one["accelerated"]]
        if any(way["messages"] > way["tcp_messages"] for way in ways):
            return True
        if any(way["tcp_messages"] for way in ways) or (connections and not ways):
            return False
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _round(bench: _Bench, mode: str, number: int, size: Size) -> Iterator[Row]:
    """Each path once, forwards in even rounds and backwards in odd ones."""
    order = bench.ways if number % 2 == 0 else tuple(reversed(bench.ways))
    for way in order:
        yield _tcp(bench, way, mode, number, GRAPH_SIZE, size.seconds)
    yield from _pairs(bench, mode, number, size.seconds)
    if number < size.http_rounds:
        for way in order:
            yield _http(bench, way, mode, number, GRAPH_SIZE, 1, size.seconds)


def _sweep(bench: _Bench, mode: str, number: int, size: Size) -> Iterator[Row]:
    order = bench.ways if number % 2 == 0 else tuple(reversed(bench.ways))
    for length in size.sizes:
        for way in order:
            if length != GRAPH_SIZE:
                yield _tcp(bench, way, mode, number, length, size.seconds)
            yield _throughput(bench, way, mode, number, length, size.seconds)
    for connections in size.connections:
        for way in order:
            yield _http(bench, way, mode, number, GRAPH_SIZE, connections, size.seconds)


def _tcp(bench: _Bench, way: Way, mode: str, number: int, length: int, seconds: int) -> Row:
    shell, address = bench.of(way)
    words = f"sockperf ping-pong --tcp --full-rtt -i {address} -p {way.tcp} -m {length} -t {seconds}"
    for _ in range(_TRIES):
        before = bench.cpu()
        text = shell.ask(words, timeout=seconds + 20)
        if tools.SOCKPERF_SAW_NOTHING not in text:
            break
    seen = tools.sockperf_latency(text)
    cpu = None if way.name == BRIDGE else (bench.cpu() - before) / seen.requests
    return Row("tcp", mode, way.name, number, length, 1, seen.percentiles, seen.rate, cpu, seen.errors)


def _http(
    bench: _Bench, way: Way, mode: str, number: int, length: int, connections: int, seconds: int
) -> Row:
    shell, address = bench.of(way)
    before = bench.cpu()
    url = f"http://{address}:{way.http}/{length}"
    words = f"wrk --latency --threads 1 --connections {connections} --duration {seconds}s --timeout 10s"
    words += f" --script {_WRK_SCRIPT} {url}"
    seen = tools.wrk_latency(shell.ask(words, timeout=seconds + 30))
    cpu = None if way.name == BRIDGE else (bench.cpu() - before) / max(1, seen.requests)
    return Row(
        "http", mode, way.name, number, length, connections, seen.percentiles, seen.rate, cpu, seen.errors
    )


def _throughput(bench: _Bench, way: Way, mode: str, number: int, length: int, seconds: int) -> Row:
    shell, address = bench.of(way)
    before = bench.cpu()
    words = f"sockperf throughput --tcp -i {address} -p {way.tcp} -m {length} -t {seconds}"
    rate, messages = tools.sockperf_throughput(shell.ask(words, timeout=seconds + 20), length)
    cpu = None if way.name == BRIDGE else (bench.cpu() - before) / max(1, messages)
    return Row("throughput", mode, way.name, number, length, rate=rate, cpu=cpu)


def _streams(pods: Workload, bench: _Bench, mode: str, number: int, size: Size) -> Iterator[Row]:
    ways = [
        (way, bench.addresses[way.pod], f"{pods.namespace}/client {pods.namespace}/{way.pod}")
        for way in bench.ways
        if way.name in streams.PATHS
    ]
    return streams.round_(
        bench.client, bench.node, ways, mode, number, size.stream_sizes, size.seconds, size.stream_settle
    )


def _pairs(bench: _Bench, mode: str, number: int, seconds: int) -> Iterator[Row]:
    """A UNIX socket pair is the limit. sockperf knows none: our own ping-pong asks both, for the ratio."""
    ways = {way.name: way.pod for way in bench.ways if way.name in (NO_PROXY, IN_KERNEL, WITH_POLICY)}
    tail = f"{GRAPH_SIZE} {seconds / 2}"
    asked = [
        (name, bench.client, f"tcp {bench.addresses[pod]} {paths.PAIR} {tail}") for name, pod in ways.items()
    ]
    asked.append((UNIX, bench.server, f"unix {paths.UNIX_SOCKET} {tail}"))
    for name, shell, words in asked if number % 2 == 0 else reversed(asked):
        seen = tools.pingpong_latency(shell.ask(f"python3 /tmp/pingpong.py {words}", timeout=seconds + 20))
        yield Row("pair", mode, name, number, GRAPH_SIZE, 1, seen.percentiles, seen.rate, None, seen.errors)


def _pin(bench: _Bench, pods: Workload) -> None:
    """Put every process of the pods and of the baseline on the first CPU that they may use."""
    groups = [path.rpartition("/")[0] for path in bench.usage]
    words = "find {} -name cgroup.procs -exec cat {{}} + | sort -u | xargs -r -n1 taskset --all-tasks -cp {}"
    first = bench.node.ask("taskset -cp $$ | grep -oE '[0-9]+' | sed -n 2p").strip()
    bench.node.ask(f"{{ {words.format(' '.join(groups), first)} ; }} >/dev/null", fails=True)
    bench.base.pin(int(first))
    bench.plain_client.ask(f"taskset -cp {first} $$ >/dev/null")
    placed = bench.client.ask("taskset -cp $$").rpartition(":")[2].strip()
    if placed != first:
        die(f"the client's shell is on CPUs {placed} and not on {first} alone", code=ExitCode.NODE)


def _versions(bench: _Bench) -> dict[str, str]:
    """What each program says of its version, one line each."""
    asked = {
        "Envoy": "envoy --version | grep -o 'version.*'",
        "HAProxy": "haproxy -v | head -1",
        "nginx": "nginx -v 2>&1",
        "sockperf": "sockperf --version | grep -o 'version [^ ]*'",
        "wrk": "wrk -v 2>&1 | head -1",
    }
    return {name: bench.client.ask(words, fails=True).strip() for name, words in asked.items()}

"""The loader on a node: idempotent, in place, and careful with what is pinned."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator

import pytest

from datapath import attach, libbpf, reasons, tables
from datapath.libbpf import AttachType, MapType
from datapath.programs import PROGRAMS
from tests.bpf.counting import events, wait_for
from tests.bpf.fabric import Fabric, Pod
from tests.bpf.sandbox import Node, Sandbox
from tests.bpf.talking import connected, receive


@pytest.fixture(scope="module")
def cluster(sandbox: Sandbox) -> Iterator[Fabric]:
    """One node, apart from the others': these tests break it."""
    made = Fabric(sandbox, ["loader"])
    yield made
    made.nodes[0].write_config()
    made.nodes[0].loader("down")
    made.close()


@pytest.fixture
def home(cluster: Fabric) -> Node:
    node = cluster.nodes[0]
    node.write_config()
    return node


@pytest.fixture
def pair(cluster: Fabric, home: Node) -> Iterator[tuple[Pod, Pod]]:
    client, server = cluster.pod(home, 1001), cluster.pod(home, 1002)
    yield client, server
    cluster.remove(client)
    cluster.remove(server)


def program_ids(node: Node) -> dict[str, int]:
    found = {}
    for program in PROGRAMS:
        fd = node.program(program.name)
        found[program.name] = libbpf.program_info(fd).id
        os.close(fd)
    return found


def test_a_second_up_changes_nothing(home: Node) -> None:
    before = program_ids(home)
    result = json.loads(home.loader("up").stdout)
    assert (result["compiled"], result["attached"]) == (False, 0)
    assert program_ids(home) == before


def test_status_tells_what_is_there(home: Node, pair: tuple[Pod, Pod]) -> None:
    status = json.loads(home.loader("status").stdout)
    assert status["current"] and status["overlay"] and status["host"] and status["cgroup"]
    assert {pod.index for pod in pair} <= set(status["pods"])
    assert set(status["programs"]) == {program.name for program in PROGRAMS}


@pytest.mark.parametrize("by", ["up", "ahead"])
def test_kept_programs_need_no_compiler(home: Node, pair: tuple[Pod, Pod], by: str) -> None:
    """What was compiled once is loaded as it was, under running traffic; what is of another source is not."""
    client, server = pair
    state = home.sandbox.root / "run" / home.name / "datapath.json"
    kept = state.with_name(f"kept-by-{by}.json")
    option = ("--kept", f"/run/{home.name}/{kept.name}")
    made = json.loads(home.loader("up", "--force", *(option if by == "up" else ())).stdout)
    if by == "ahead":
        compiler = ("python3", "-m", "datapath.loader.ahead", "--kernel", "/sys/kernel/btf/vmlinux")
        home.sandbox.run(home.namespace, *compiler, *option)
    before = program_ids(home)
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
        state.unlink()
        again = json.loads(home.loader("up", *option).stdout)
        connection.echo()
    assert (made["compiled"], again["compiled"], again["loaded"]) == (True, False, True)
    assert not set(before.values()) & set(program_ids(home).values())
    tags = [{name: figures["tag"] for name, figures in run["figures"].items()} for run in (made, again)]
    assert tags[0] == tags[1]
    document = json.loads(kept.read_text())
    kept.write_text(json.dumps({**document, "key": "of another source"}))
    state.unlink()
    assert json.loads(home.loader("up", *option).stdout)["compiled"]
    assert json.loads(kept.read_text()) == document


def test_programs_are_replaced_under_running_traffic(home: Node, pair: tuple[Pod, Pod]) -> None:
    """An upgrade of every program: a stream loses no byte, a denied flow gets nothing through."""
    client, server = pair
    before = program_ids(home)
    data = os.urandom(1 << 16)
    stop = threading.Event()
    passed: list[int] = []

    with connected(client.namespace, server, server.address) as connection:
        denied = pair[0].namespace.socket(socket.SOCK_DGRAM)
        listener = server.namespace.socket(socket.SOCK_DGRAM)
        listener.bind((str(server.address), 99))
        listener.settimeout(0.05)
        server.set_policy(
            {
                tables.PolicyKey(prefix=48, identity=0, direction=0, protocol=6): tables.PolicyEntry(
                    verdict=1
                ),
                tables.PolicyKey(prefix=40, identity=0, direction=1): tables.PolicyEntry(verdict=1),
            }
        )

        def send_denied() -> None:
            while not stop.wait(0.001):
                denied.sendto(b"x", (str(server.address), 99))

        def listen() -> None:
            while not stop.is_set():
                try:
                    passed.append(len(listener.recv(10)))
                except TimeoutError:
                    continue

        def stream() -> None:
            while not stop.wait(0.001):
                connection.client.sendall(data)
                assert receive(connection.server, len(data)) == data
                rounds.append(1)

        rounds: list[int] = []
        threads = [threading.Thread(target=work) for work in (send_denied, listen, stream)]
        for thread in threads:
            thread.start()
        result = json.loads(home.loader("up", "--force").stdout)
        after = len(rounds)
        wait_for(lambda: len(rounds) >= after + 10 or not threads[2].is_alive(), "the stream goes on")
        assert threads[2].is_alive()
        stop.set()
        for thread in threads:
            thread.join()
        denied.close()
        listener.close()
    assert result["compiled"] and result["attached"] >= 2 + 2 + 8 + 4
    assert not set(before.values()) & set(program_ids(home).values())
    assert not passed
    with home.namespace.entered():
        for pod in pair:
            assert len(libbpf.programs_attached(pod.index, AttachType.TCX_INGRESS)) == 1
            assert len(libbpf.programs_attached(pod.index, AttachType.TCX_EGRESS)) == 1
    folder = os.open(home.cgroup, os.O_RDONLY)
    assert len(libbpf.programs_attached(folder, AttachType.INET4_CONNECT)) == 1
    os.close(folder)


def test_a_program_of_somebody_else_is_left_alone(home: Node, pair: tuple[Pod, Pod]) -> None:
    pod = pair[0]
    foreign = home.program("host_ingress")
    with home.namespace.entered():
        libbpf.program_attach(foreign, pod.index, AttachType.TCX_INGRESS)
        attach.attach_pod(pod.index, home.pins)
        assert len(libbpf.programs_attached(pod.index, AttachType.TCX_INGRESS)) == 2
        libbpf.program_detach(foreign, pod.index, AttachType.TCX_INGRESS)
    os.close(foreign)


def test_a_map_of_another_size_is_copied(home: Node, pair: tuple[Pod, Pod]) -> None:
    client, server = pair
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
        endpoints = home.maps.endpoints.read()
        policies = home.maps.policies.endpoints()
        home.write_config(
            map_entries={"conntrack": 32768, "endpoints": 8192, "policies": 2048, "ipcache": 9999}
        )
        result = json.loads(home.loader("up").stdout)
        assert result["compiled"]
        home.reopen()
        fd = libbpf.open_pinned(home.pins / "maps" / "conntrack")
        assert libbpf.map_info(fd).max_entries == 32768
        os.close(fd)
        assert home.maps.endpoints.read() == endpoints
        assert home.maps.policies.endpoints() == policies
        assert home.config().router == home.router
        connection.echo()
    home.write_config()
    home.loader("up")
    home.reopen()


def test_a_size_that_is_too_small_is_refused(home: Node, pair: tuple[Pod, Pod]) -> None:
    before = program_ids(home)
    home.write_config(map_entries={"endpoints": 1})
    done = home.loader("up", check=False)
    assert done.returncode == 4
    assert "endpoints does not fit" in done.stderr
    assert program_ids(home) == before


def test_maps_of_redirect_keep_their_size(home: Node) -> None:
    """Sockets hold on to them, and a count that missed a byte would break the order of a stream."""
    before = program_ids(home)
    home.write_config(map_entries={"streams": 1000})
    done = home.loader("up", check=False)
    assert (done.returncode, "streams cannot change its size" in done.stderr) == (4, True)
    assert program_ids(home) == before


def test_another_layout_version_is_refused_and_nothing_is_touched(home: Node) -> None:
    before = program_ids(home)
    fd = libbpf.open_pinned(home.pins / "maps" / "layouts")
    key = tables.MapName(name="conntrack").pack()
    libbpf.map_update(fd, key, tables.LayoutVersion(version=99).pack())
    try:
        done = home.loader("up", "--force", check=False)
    finally:
        libbpf.map_update(fd, key, tables.LayoutVersion(version=1).pack())
        os.close(fd)
    assert done.returncode == 4
    assert "conntrack has layout 99, this version needs 1" in done.stderr
    assert "hint:" in done.stderr
    assert program_ids(home) == before


def test_a_ring_of_another_layout_is_made_anew_and_no_connection_notices(
    home: Node, pair: tuple[Pod, Pod]
) -> None:
    """What another release's programs wrote is not read by this one's layout: the ring goes."""
    client, server = pair

    def id_of(name: str) -> int:
        fd = libbpf.open_pinned(home.pins / "maps" / name)
        try:
            return libbpf.map_info(fd).id
        finally:
            os.close(fd)

    before = {name: id_of(name) for name in ("events", "conntrack", "streams")}
    fd = libbpf.open_pinned(home.pins / "maps" / "layouts")
    libbpf.map_update(fd, tables.MapName(name="events").pack(), tables.LayoutVersion(version=1).pack())
    os.close(fd)
    with connected(client.namespace, server, server.address) as connection:
        connection.echo()
        home.loader("up", "--force")
        connection.echo()
    assert id_of("events") != before["events"]
    assert {name: id_of(name) for name in ("conntrack", "streams")} == {
        name: before[name] for name in ("conntrack", "streams")
    }
    again = id_of("events")
    home.loader("up", "--force")
    assert id_of("events") == again
    home.reopen()
    with events(home) as seen, connected(client.namespace, server, server.address) as connection:
        connection.echo()
    assert "opened" in {reasons.name_of(event.reason) for event in seen}


def test_another_shape_is_refused(home: Node) -> None:
    path = home.pins / "maps" / "affinity"
    aside = path.with_name("affinity_aside")
    path.rename(aside)
    fd = libbpf.map_create(MapType.HASH, "affinity", 4, 4, 10)
    libbpf.pin(fd, path)
    os.close(fd)
    try:
        done = home.loader("up", check=False)
    finally:
        path.unlink()
        aside.rename(path)
    assert done.returncode == 4
    assert "affinity has (type, key, value, flags)" in done.stderr


def test_pins_are_roots_alone(home: Node) -> None:
    assert stat.S_IMODE(home.pins.stat().st_mode) == 0o700
    for folder in ("maps", "programs"):
        for path in (home.pins / folder).iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_faults_of_the_configuration_are_all_listed(home: Node) -> None:
    home.write_config(node_address="nowhere", overlay_port=0, devices=[], surprising=1)
    done = home.loader("up", check=False)
    assert done.returncode == 2
    for word in ("node_address", "overlay_port", "devices", "surprising: is not known"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"devices": ["eth7"]}, 2, "no device eth7"),
        ({"pins": "/run/pins"}, 3, "not on a BPF file system"),
        ({"overlay_port": 4790}, 3, "with port 8472 and not 4790"),
        ({"cgroup": "/proc/self"}, 6, "cannot attach"),
        ({"cgroup": "/nowhere"}, 3, "cannot open the cgroup"),
    ],
)
def test_faults_of_the_environment(change: dict[str, object], code: int, message: str, home: Node) -> None:
    home.write_config(**change)
    done = home.loader("up", check=False)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_down_leaves_no_pod_with_a_network_and_nothing_behind(cluster: Fabric, home: Node) -> None:
    client, server = cluster.pod(home, 1001), cluster.pod(home, 1002)
    home.loader("down")
    with home.namespace.netlink() as netlink:
        states = {
            link.get_attr("IFLA_IFNAME"): link.get_attr("IFLA_OPERSTATE") for link in netlink.get_links()
        }
    assert states[client.device] == states[server.device] == "DOWN"
    assert "underpass0" not in states
    assert not list((home.pins).glob("*/*"))
    with home.namespace.entered():
        assert libbpf.programs_attached(client.index, AttachType.TCX_INGRESS) == []
    folder = os.open(home.cgroup, os.O_RDONLY)
    assert libbpf.programs_attached(folder, AttachType.INET4_CONNECT) == []
    os.close(folder)
    for pod in (client, server):
        with home.namespace.netlink() as netlink:
            netlink.link("del", index=pod.index)
        pod.namespace.close()
    assert json.loads(home.loader("up").stdout)["compiled"]

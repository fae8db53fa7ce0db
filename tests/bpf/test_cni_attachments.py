"""Pods are wired up and taken down in real namespaces, and no crash leaks an address or gives one twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agent.links import host_interface_name, host_mac_of
from tests.bpf.namespaces import Namespace
from tests.sizes import SIZES

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "agent" / "cni" / "plugin.py"
START_SECONDS = 60.0


class Agent:
    """The process that serves the plugin, in a namespace that stands for the node's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = Namespace.make()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        with self.node.entered():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bpf.cni_agent", str(self.folder)], cwd=ROOT
            )
        ready = self.folder / f"ready.{self.process.pid}"
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            assert self.process.poll() is None, "the agent ended"
            assert time.monotonic() < deadline, "the agent does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash does."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def await_socket(self, deadline: float) -> None:
        """Wait until somebody listens, at most until `deadline`: plugins that are started in vain would only
        keep the agent from its own start.
        """
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(str(self.folder / "cni.sock"))
                return
            time.sleep(0.05)

    def book(self) -> dict[str, dict[str, Any]]:
        """The address book on disk by container."""
        try:
            data = json.loads((self.folder / "addresses.json").read_text())
        except FileNotFoundError:
            return {}
        return {entry["container"]: entry for entry in data["attachments"]}

    def cables(self) -> set[str]:
        """The names of the host's ends that are there."""
        with self.node.netlink() as netlink:
            names = {link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        return {name for name in names if name.startswith("pod")}

    def call(
        self,
        command: str,
        container: str,
        netns: str,
        version: str = "1.0.0",
        kill_after: float | None = None,
        pod: int = 0,
        **config: Any,
    ) -> tuple[int, dict[str, Any]]:
        """Run the plugin; (exit status, answer). With `kill_after` seconds it is killed: status -9."""
        process = subprocess.Popen(
            [sys.executable, "-ISB", str(PLUGIN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": netns,
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/opt/cni/bin",
                "CNI_ARGS": f"K8S_POD_NAMESPACE=blue;K8S_POD_NAME=p{pod};K8S_POD_UID=u{pod}",
                "UNDERPASS_CNI_SOCKET": str(self.folder / "cni.sock"),
            },
        )
        document = {"cniVersion": version, "name": "underpass", "type": "underpass-cni", **config}
        if kill_after is not None:
            assert process.stdin
            process.stdin.write(json.dumps(document).encode())
            process.stdin.close()
            time.sleep(kill_after)
            process.kill()
            process.wait()
            return -signal.SIGKILL, {}
        output, _ = process.communicate(json.dumps(document).encode(), timeout=120)
        return process.returncode, json.loads(output) if output else {}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    if os.geteuid():
        pytest.fail("the CNI tests need root")
    made = Agent(tmp_path)
    made.start()
    yield made
    made.kill()
    os.close(made.node.descriptor)


class Sandboxes:
    """Network namespaces of sandboxes, by number."""

    def __init__(self, count: int) -> None:
        self.namespaces = [Namespace.make() for _ in range(count)]

    def path(self, number: int) -> str:
        return f"/proc/{os.getpid()}/fd/{self.namespaces[number].descriptor}"

    def close(self) -> None:
        for namespace in self.namespaces:
            os.close(namespace.descriptor)


@pytest.fixture
def sandbox() -> Iterator[str]:
    made = Sandboxes(1)
    yield made.path(0)
    made.close()


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_an_attachment_is_what_its_result_says(agent: Agent, version: str) -> None:
    made = Sandboxes(1)
    status, result = agent.call("ADD", "c1", made.path(0), version)
    assert status == 0, result
    address = result["ips"][0]["address"]
    with made.namespaces[0].netlink() as netlink:
        index = netlink.link_lookup(ifname="eth0")[0]
        link = netlink.get_links(index)[0]
        assert link.get_attr("IFLA_ADDRESS") == result["interfaces"][1]["mac"]
        assert link.get_attr("IFLA_MTU") == 1450
        held = {a.get_attr("IFA_ADDRESS") for a in netlink.get_addr(index=index, family=2)}
        assert held == {address.removesuffix("/32")}
        gateways = {r.get_attr("RTA_GATEWAY") for r in netlink.get_routes(family=2, oif=index)}
        assert result["ips"][0]["gateway"] in gateways
        loopback = netlink.get_links(1)[0]
        assert loopback["flags"] & 1
    assert agent.cables() == {result["interfaces"][0]["name"]}
    status, answer = agent.call("CHECK", "c1", made.path(0), version, prevResult=result)
    assert status == 0, answer
    status, answer = agent.call("DEL", "c1", made.path(0), version, prevResult=result)
    assert (status, answer) == (0, {})
    assert agent.cables() == set()
    assert agent.book() == {}
    made.close()


def test_the_host_reaches_the_pod_by_its_cable(agent: Agent) -> None:
    made = Sandboxes(1)
    _, result = agent.call("ADD", "c1", made.path(0))
    address = result["ips"][0]["address"].removesuffix("/32")
    with made.namespaces[0].socket(1) as listener:
        listener.bind((address, 80))
        listener.listen()
        with agent.node.socket(1) as client:
            client.connect((address, 80))
            assert client.getsockname()[0] == "172.30.0.2"
    made.close()


def test_the_hosts_end_has_a_mac_that_stays(agent: Agent) -> None:
    """udev gives a virtual link another MAC, unless its maker set one: here it follows the pod's."""
    made = Sandboxes(1)
    _, result = agent.call("ADD", "c1", made.path(0))
    host = result["interfaces"][0]
    assert host["mac"] == host_mac_of(result["interfaces"][1]["mac"])
    with agent.node.netlink() as netlink:
        (link,) = netlink.get_links(ifname=host["name"])
        assert link.get_attr("IFLA_ADDRESS") == host["mac"]
    with made.namespaces[0].netlink() as netlink:
        known = {n.get_attr("NDA_DST"): n.get_attr("NDA_LLADDR") for n in netlink.get_neighbours(family=2)}
    assert known[result["ips"][0]["gateway"]] == host["mac"]
    made.close()


def test_check_sees_what_has_been_undone(agent: Agent) -> None:
    made = Sandboxes(1)
    _, result = agent.call("ADD", "c1", made.path(0))
    with made.namespaces[0].netlink() as netlink:
        netlink.flush_addr(index=netlink.link_lookup(ifname="eth0")[0])
    status, answer = agent.call("CHECK", "c1", made.path(0), prevResult=result)
    assert (status, answer["code"]) == (1, 102)
    status, answer = agent.call("CHECK", "never", made.path(0), prevResult=result)
    assert (status, answer["code"]) == (1, 3)
    made.close()


def test_del_may_come_twice_late_or_without_a_namespace(agent: Agent) -> None:
    made = Sandboxes(2)
    _, old = agent.call("ADD", "old", made.path(0))
    assert agent.call("DEL", "old", "")[0] == 0
    assert agent.call("DEL", "old", made.path(0))[0] == 0
    _, new = agent.call("ADD", "new", made.path(1))
    # Late, and with the result of an attachment that is long gone.
    assert agent.call("DEL", "old", made.path(1), prevResult={**old, "ips": new["ips"]})[0] == 0
    assert set(agent.book()) == {"new"}
    assert agent.cables() == {host_interface_name("new", "eth0")}
    assert agent.call("DEL", "never", "/nowhere")[0] == 0
    made.close()


def test_a_namespace_that_is_gone_leaves_nothing_behind(agent: Agent) -> None:
    status, answer = agent.call("ADD", "c1", "/proc/self/fd/999")
    assert (status, answer["code"]) == (1, 3)
    assert agent.book() == {}
    assert agent.cables() == set()


def test_the_nodes_own_namespace_is_refused(agent: Agent) -> None:
    assert agent.process
    status, answer = agent.call("ADD", "c1", f"/proc/{agent.process.pid}/ns/net")
    assert (status, answer["code"]) == (1, 4)


def test_gc_takes_down_what_is_not_listed(agent: Agent) -> None:
    made = Sandboxes(2)
    agent.call("ADD", "keep", made.path(0))
    agent.call("ADD", "drop", made.path(1))
    assert agent.call("GC", "", "", "1.1.0") == (0, {}), "no list, no judgement"
    assert set(agent.book()) == {"keep", "drop"}
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    status, answer = agent.call("GC", "", "", "1.1.0", None, 0, **{"cni.dev/valid-attachments": valid})
    assert (status, answer) == (0, {})
    assert set(agent.book()) == {"keep"}
    assert agent.cables() == {host_interface_name("keep", "eth0")}
    assert agent.call("STATUS", "", "", "1.1.0") == (0, {})
    made.close()


def test_a_second_add_of_an_attachment_is_refused_and_changes_nothing(agent: Agent) -> None:
    made = Sandboxes(1)
    _, first = agent.call("ADD", "c1", made.path(0))
    status, answer = agent.call("ADD", "c1", made.path(0))
    assert (status, answer["code"]) == (1, 4)
    assert agent.call("CHECK", "c1", made.path(0), prevResult=first)[0] == 0
    made.close()


class Storm:
    """Many sandboxes at once, wired up and taken down as a runtime does it, through kills."""

    def __init__(self, agent: Agent, rng: random.Random, sandboxes: Sandboxes) -> None:
        self.agent = agent
        self.sandboxes = sandboxes
        self.rng = rng
        self.answered: dict[str, str] = {}
        self._lock = threading.Lock()

    def persist(self, command: str, container: str, number: int) -> tuple[int, dict[str, Any]]:
        """Ask until the agent answers (it may be on its way back)."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            status, answer = self.agent.call(
                command, container, self.sandboxes.path(number) if command == "ADD" else "", pod=number
            )
            if status == 0 or answer.get("code") != 11 or time.monotonic() > deadline:
                return status, answer
            time.sleep(0.2)
            self.agent.await_socket(deadline)

    def one(self, number: int) -> None:
        """One sandbox: perhaps first an ADD that is killed, then one that must come to an answer."""
        container = f"c{number}"
        if self.rng.random() < 0.3:
            netns = self.sandboxes.path(number)
            self.agent.call("ADD", container, netns, kill_after=self.rng.uniform(0, 0.3), pod=number)
            assert self.persist("DEL", container, number)[0] == 0
            container += "-again"
        for _ in range(20):
            status, answer = self.persist("ADD", container, number)
            if status == 0:
                break
            # A failed ADD is followed by a DEL, as the specification wants it.
            assert self.persist("DEL", container, number)[0] == 0
        assert status == 0, answer
        with self._lock:
            self.answered[container] = answer["ips"][0]["address"].removesuffix("/32")

    def take_down(self, container: str) -> None:
        assert self.persist("DEL", container, 0)[0] == 0


def test_no_address_is_leaked_or_given_twice_whatever_is_killed(agent: Agent) -> None:
    rng = random.Random(20)
    sandboxes = Sandboxes(SIZES.cni_parallel)
    for round_number in range(SIZES.cni_rounds):
        storm = Storm(agent, rng, sandboxes)
        over = threading.Event()

        def killer(over: threading.Event = over) -> None:
            while not over.wait(rng.uniform(1.0, 3.0)):
                agent.kill()
                agent.start()

        killing = threading.Thread(target=killer)
        if round_number % 2 == 0:
            killing.start()
        try:
            with ThreadPoolExecutor(24) as pool:
                for outcome in [pool.submit(storm.one, n) for n in range(SIZES.cni_parallel)]:
                    outcome.result()
        finally:
            over.set()
            if killing.is_alive():
                killing.join()
        book = {container: entry["address"] for container, entry in agent.book().items()}
        assert len(set(storm.answered.values())) == len(storm.answered), "an address was given twice"
        assert book == storm.answered, "the book holds what was answered and nothing else"
        assert agent.cables() == {host_interface_name(c, "eth0") for c in book}
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(storm.take_down, storm.answered))
        assert agent.book() == {}
        assert agent.cables() == set()
    sandboxes.close()

"""The CNI plugin and its server speak the specification, 0.4.0 to 1.1.0."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.cni import conflist
from agent.cni.plugin import VARIABLES
from agent.cni.server import CniServer
from agent.cni.spec import VERSIONS, CniError, Code, Request, Result, parse_request
from agent.ipam import Attachment, Ipam
from agent.reclaim import Reclaimer

PLUGIN = Path(__file__).parents[2] / "agent" / "cni" / "plugin.py"
LOOPBACK = Path(__file__).parents[2] / "playbooks/roles/agent/files/opt/cni/bin/loopback"
RESULT = Result(
    "eth0", "/ns", "02:00:00:00:00:01", "podx", "02:00:00:00:00:02", "10.1.0.2", "169.254.1.1", 1450
)


@dataclass
class Recorded:
    """Operations that remember what they were asked, and fail as they are told."""

    asked: list[Request] = field(default_factory=list)
    fault: Exception | None = None

    def _note(self, request: Request) -> None:
        self.asked.append(request)
        if self.fault:
            raise self.fault

    def add(self, request: Request) -> dict[str, Any]:
        self._note(request)
        return RESULT.to_json(request.version)

    delete = check = collect = status = _note


@pytest.fixture
def operations() -> Recorded:
    return Recorded()


@pytest.fixture
def server(tmp_path: Path, operations: Recorded) -> Iterator[Path]:
    path = tmp_path / "run" / "cni.sock"
    serving = CniServer(path, operations, lambda *_, **__: None, lambda *_: None)
    serving.start()
    yield path
    serving.stop()


def config(version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    return {"cniVersion": version, "name": "underpass", "type": "underpass-cni", **more}


def call(path: Path, command: str, document: object, **variables: str) -> tuple[int, dict[str, Any]]:
    """Run the plugin as the runtime does: (exit status, what it printed as JSON)."""
    given = {"CONTAINERID": "c1", "NETNS": "/proc/self/ns/net", "IFNAME": "eth0", "PATH": "/opt/cni/bin"}
    environment = {f"CNI_{key}": value for key, value in {**given, **variables}.items()}
    text = document if isinstance(document, str) else json.dumps(document)
    done = subprocess.run(
        [sys.executable, "-ISB", str(PLUGIN)],
        input=text.encode(),
        env={**environment, "CNI_COMMAND": command, "UNDERPASS_CNI_SOCKET": str(path)},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert not done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


@pytest.mark.parametrize("version", VERSIONS)
def test_add_answers_in_the_version_of_the_configuration(server: Path, version: str) -> None:
    status, answer = call(server, "ADD", config(version))
    assert status == 0
    assert answer["cniVersion"] == version
    assert answer["ips"][0]["address"] == "10.1.0.2/32"
    assert answer["interfaces"][answer["ips"][0]["interface"]]["sandbox"] == "/ns"
    assert ("version" in answer["ips"][0]) == (version == "0.4.0")
    assert ("mtu" in answer["interfaces"][1]) == (version == "1.1.0")


def test_the_request_arrives_as_it_was_made(server: Path, operations: Recorded) -> None:
    call(server, "ADD", config(), ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=blue;K8S_POD_NAME=a=b")
    request = operations.asked[0]
    assert request.owner == ("c1", "eth0")
    assert request.arguments == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "blue",
        "K8S_POD_NAME": "a=b",
    }


def test_version_is_answered_without_an_agent(tmp_path: Path) -> None:
    status, answer = call(tmp_path / "nobody", "VERSION", {"cniVersion": "1.0.0"})
    assert status == 0
    assert answer["supportedVersions"] == list(VERSIONS)


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("DEL", 11), ("CHECK", 11), ("STATUS", 50)])
@pytest.mark.parametrize("version", VERSIONS)
def test_without_an_agent_the_runtime_is_told_to_try_again(
    tmp_path: Path, command: str, code: int, version: str
) -> None:
    status, answer = call(tmp_path / "nobody", command, config(version))
    assert status == 1
    assert answer["code"] == code
    assert answer["cniVersion"] == version
    assert "does not answer" in answer["msg"]


def test_an_agent_that_ends_before_it_answers_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-ISB", str(PLUGIN)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"CNI_COMMAND": "ADD", "UNDERPASS_CNI_SOCKET": str(path)},
        )
        listener.accept()[0].close()
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert json.loads(output)["code"] == 11


@pytest.mark.parametrize(
    ("command", "document", "variables", "code"),
    [
        ("ADD", config("0.3.1"), {}, Code.INCOMPATIBLE_VERSION),
        ("ADD", config("2.0.0"), {}, Code.INCOMPATIBLE_VERSION),
        ("GC", config("1.0.0"), {}, Code.INCOMPATIBLE_VERSION),
        ("STATUS", config("0.4.0"), {}, Code.INCOMPATIBLE_VERSION),
        ("ADD", "{", {}, Code.DECODING_FAILURE),
        ("ADD", "[]", {}, Code.DECODING_FAILURE),
        ("ADD", {"cniVersion": "1.0.0"}, {}, Code.INVALID_CONFIGURATION),
        ("ADD", config(prevResult={}), {}, Code.INVALID_CONFIGURATION),
        ("CHECK", config(), {}, Code.INVALID_CONFIGURATION),
        ("ADD", config(), {"CONTAINERID": ""}, Code.INVALID_ENVIRONMENT),
        ("ADD", config(), {"NETNS": ""}, Code.INVALID_ENVIRONMENT),
        ("ADD", config(), {"IFNAME": "a" * 16}, Code.INVALID_ENVIRONMENT),
        ("ADD", config(), {"IFNAME": "a/b"}, Code.INVALID_ENVIRONMENT),
        ("ADD", config(), {"CONTAINERID": "../c"}, Code.INVALID_ENVIRONMENT),
        ("ADD", config(), {"ARGS": "novalue"}, Code.INVALID_ENVIRONMENT),
        ("RENAME", config(), {}, Code.INVALID_ENVIRONMENT),
    ],
)
def test_a_wrong_request_gets_the_specifications_code(
    server: Path,
    operations: Recorded,
    command: str,
    document: object,
    variables: dict[str, str],
    code: Code,
) -> None:
    status, answer = call(server, command, document, **variables)
    assert status == 1
    assert answer["code"] == code
    assert answer["msg"]
    assert not operations.asked


def test_del_needs_no_namespace(server: Path, operations: Recorded) -> None:
    status, answer = call(server, "DEL", config(), NETNS="")
    assert (status, answer) == (0, {})
    assert operations.asked[0].netns == ""


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (CniError(Code.NO_ADDRESS, "no address is free"), Code.NO_ADDRESS),
        (OSError(28, "no space"), Code.IO_FAILURE),
        (RuntimeError("bug"), Code.INTERNAL),
    ],
)
def test_a_fault_of_the_agent_is_still_an_answer(
    server: Path, operations: Recorded, fault: Exception, code: Code
) -> None:
    operations.fault = fault
    status, answer = call(server, "ADD", config("0.4.0"))
    assert status == 1
    assert answer["code"] == code
    assert answer["cniVersion"] == "0.4.0"


def test_the_socket_is_for_root_alone_and_replaces_an_older_one(tmp_path: Path, server: Path) -> None:
    assert server.stat().st_mode & 0o777 == 0o600
    second = Recorded()
    successor = CniServer(server, second, lambda *_, **__: None, lambda *_: None)
    successor.start()
    try:
        assert call(server, "ADD", config())[0] == 0
        assert len(second.asked) == 1
    finally:
        successor.stop()


def test_many_requests_at_once_are_all_answered(server: Path, operations: Recorded) -> None:
    connections = []
    for number in range(300):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(server))
        fields = ["DEL", f"c{number}", "", "eth0", "", "", json.dumps(config())]
        connection.sendall("\0".join(fields).encode())
        connection.shutdown(socket.SHUT_WR)
        connections.append(connection)
    for connection in connections:
        with connection:
            assert connection.recv(100) == b"0\n"
    assert {request.container for request in operations.asked} == {f"c{n}" for n in range(300)}


def test_the_plugin_imports_nothing_that_costs(tmp_path: Path) -> None:
    """Its start is a part of every pod's: modules that are not built in would double it."""
    done = subprocess.run(
        [sys.executable, "-ISB", "-X", "importtime", str(PLUGIN)],
        input=b"{}",
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        check=True,
        timeout=30,
    )
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.decode().splitlines()[1:]}
    assert not loaded & {"json", "socket", "os", "re", "enum", "subprocess", "typing"}


def test_plugin_and_server_agree_on_the_order_of_variables() -> None:
    fields = ["ADD", "c1", "/ns", "eth0", "A=b", "/opt/cni/bin"]
    request = parse_request(fields, json.dumps(config()).encode())
    named = dict(zip(VARIABLES, fields, strict=True))
    assert (request.command, request.container, request.netns, request.interface) == (
        named["COMMAND"],
        named["CONTAINERID"],
        named["NETNS"],
        named["IFNAME"],
    )


def test_the_conflist_says_a_version_that_containerd_1_7_accepts(tmp_path: Path) -> None:
    path = tmp_path / "net.d" / "10-underpass.conflist"
    assert conflist.install(path) is True
    assert conflist.install(path) is False
    document = json.loads(path.read_text())
    assert document["cniVersion"] == "1.0.0"
    assert [plugin["type"] for plugin in document["plugins"]] == ["underpass-cni"]
    path.write_text("{}")
    assert conflist.install(path) is True


@pytest.mark.parametrize("command", ["VERSION", "DEL"])
def test_the_loopback_plugin_needs_nothing_for_what_changes_nothing(command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", str(LOOPBACK)],
        input=b'{"cniVersion": "0.3.1", "name": "lo"}',
        env={"CNI_COMMAND": command, "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    if command == "VERSION":
        assert "0.3.1" in json.loads(done.stdout)["supportedVersions"]


def test_the_loopback_plugin_refuses_a_namespace_that_is_gone() -> None:
    done = subprocess.run(
        ["/bin/sh", str(LOOPBACK)],
        input=b'{"cniVersion":"0.3.1","name":"lo"}',
        env={"CNI_COMMAND": "ADD", "CNI_NETNS": "/nowhere", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "cniVersion": "0.3.1",
        "code": 3,
        "msg": "the network namespace is gone",
    }


# Reclaiming


def book(tmp_path: Path, now: list[float], containers: list[str]) -> Ipam:
    ipam = Ipam(tmp_path / "addresses.json", clock=lambda: now[0])
    ipam.set_ranges(["10.1.0.0/24"])
    for container in containers:
        ipam.allocate(Attachment(container, "eth0", "", "ns", "p", "u", "", "h", "m", 0.0))
    return ipam


YOUNG_SECONDS = 120


def reclaimer(ipam: Ipam, now: list[float], listed: Any) -> Reclaimer:
    def forget(container: str, interface: str) -> bool:
        return ipam.release(container, interface) is not None

    return Reclaimer(ipam, listed, forget, lambda *_, **__: None, YOUNG_SECONDS, lambda: now[0])


def test_what_containerd_no_longer_lists_is_reclaimed_once_it_is_old(tmp_path: Path) -> None:
    now = [1000.0]
    ipam = book(tmp_path, now, ["gone", "there"])
    taking = reclaimer(ipam, now, lambda: {"there"})
    assert taking.run_once() == 0
    now[0] += YOUNG_SECONDS + 1
    assert taking.run_once() == 1
    assert [a.container for a in ipam.all()] == ["there"]


def test_nothing_is_reclaimed_on_a_list_that_could_not_be_read(tmp_path: Path) -> None:
    now = [1000.0]
    ipam = book(tmp_path, now, ["a"])
    now[0] += YOUNG_SECONDS + 1

    def broken() -> set[str]:
        raise subprocess.CalledProcessError(1, ["ctr"])

    assert reclaimer(ipam, now, broken).run_once() == 0
    assert len(ipam.all()) == 1

"""The plugin driven by the CNI project's own libcni (cnitool): what any runtime does with it, it does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import builds
from lab.steps import Steps
from tests.bpf.test_cni_attachments import PLUGIN, Agent, Sandboxes

PRIVATE = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
PRIVATE += ['mount --bind "$0" /var/lib && exec "$@"']
VERSIONS = ["0.4.0", "1.0.0", "1.1.0"]


@pytest.fixture(scope="session")
def cnitool() -> Path:
    return builds.build_all(Steps(), {"cnitool"})["cnitool"].path / "bin" / "cnitool"


class Runtime:
    """A container runtime's use of libcni: one network, one sandbox's namespace at a time.

    libcni keeps results below /var/lib, which here is a folder of the test's own.
    """

    def __init__(self, tool: Path, folder: Path, agent: Agent) -> None:
        self._tool, self.agent = tool, agent
        self._plugins, self._networks, self.kept = (folder / name for name in ("bin", "net.d", "lib"))
        for path in (self._plugins, self._networks, self.kept):
            path.mkdir()
        wrapper = self._plugins / "underpass-cni"
        shutil.copy(PLUGIN, wrapper)
        wrapper.chmod(0o755)

    def network(self, version: str, versions: list[str] | None = None) -> None:
        """The network configuration that libcni finds, instead of any other."""
        document: dict[str, Any] = {
            "cniVersion": version,
            "name": "underpass",
            "plugins": [{"type": "underpass-cni"}],
        }
        if versions:
            document["cniVersions"] = versions
        (self._networks / "10-underpass.conflist").write_text(json.dumps(document))

    def __call__(self, command: str, netns: str, arguments: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PRIVATE, self.kept, self._tool, command, "underpass", netns],
            env={
                "PATH": os.environ["PATH"],
                "CNI_PATH": str(self._plugins),
                "NETCONFPATH": str(self._networks),
                "CNI_ARGS": arguments or "K8S_POD_NAMESPACE=blue;K8S_POD_NAME=p0;K8S_POD_UID=u0",
                "UNDERPASS_CNI_SOCKET": str(self.agent.folder / "cni.sock"),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def check(self, command: str, netns: str) -> str:
        """Run it; it must succeed."""
        done = self(command, netns)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    if os.geteuid():
        pytest.fail("the CNI tests need root")
    made = Agent(tmp_path)
    made.start()
    yield made
    made.kill()
    os.close(made.node.descriptor)


@pytest.fixture
def runtime(cnitool: Path, tmp_path: Path, agent: Agent) -> Runtime:
    return Runtime(cnitool, tmp_path, agent)


@pytest.fixture
def netns() -> Iterator[str]:
    """A sandbox's namespace, by a path that stays the same while it is there."""
    made = Sandboxes(1)
    yield made.path(0)
    made.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_add_check_and_del(runtime: Runtime, netns: str, version: str) -> None:
    runtime.network(version)
    result = json.loads(runtime.check("add", netns))
    assert result["cniVersion"] == version
    address = result["ips"][0]["address"].removesuffix("/32")
    assert [entry["address"] for entry in runtime.agent.book().values()] == [address]
    runtime.check("check", netns)
    runtime.check("del", netns)
    assert runtime.agent.book() == {}
    assert runtime.agent.cables() == set()


def test_the_newest_version_that_both_speak_is_chosen(runtime: Runtime, netns: str) -> None:
    """libcni asks for VERSION and takes the newest of the configuration's that the plugin names."""
    runtime.network("0.4.0", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    assert json.loads(runtime.check("add", netns))["cniVersion"] == "1.1.0"
    runtime.check("del", netns)


def test_a_version_that_the_plugin_does_not_speak_is_refused(runtime: Runtime, netns: str) -> None:
    runtime.network("0.3.1")
    done = runtime("add", netns)
    assert done.returncode != 0
    assert "incompatible" in (done.stdout + done.stderr).lower()
    assert runtime.agent.book() == {}


def test_check_fails_once_the_interface_is_gone(runtime: Runtime) -> None:
    made = Sandboxes(1)
    netns = made.path(0)
    runtime.network("1.0.0")
    runtime.check("add", netns)
    with made.namespaces[0].netlink() as netlink:
        netlink.link("del", index=netlink.link_lookup(ifname="eth0")[0])
    done = runtime("check", netns)
    assert done.returncode != 0
    assert "gone" in done.stdout + done.stderr
    runtime.check("del", netns)
    made.close()


def test_del_may_come_twice_and_after_the_namespace(runtime: Runtime, netns: str) -> None:
    runtime.network("1.0.0")
    runtime.check("del", netns)
    runtime.check("add", netns)
    runtime.check("del", netns)
    runtime.check("del", netns)
    made = Sandboxes(1)
    path = made.path(0)
    runtime.check("add", path)
    made.close()
    runtime.check("del", path)
    assert runtime.agent.book() == {}


def test_a_late_del_with_an_old_result_touches_no_other_attachment(runtime: Runtime) -> None:
    """libcni keeps results and hands the old one in: another sandbox that came meanwhile stays."""
    made = Sandboxes(2)
    old, new = made.path(0), made.path(1)
    runtime.network("1.0.0")
    runtime.check("add", old)
    kept = next((runtime.kept / "cni" / "results").iterdir())
    text = kept.read_bytes()
    runtime.check("del", old)
    held = json.loads(runtime.check("add", new))["ips"][0]["address"]
    kept.write_bytes(text)
    runtime.check("del", old)
    assert [f"{entry['address']}/32" for entry in runtime.agent.book().values()] == [held]
    runtime.check("check", new)
    runtime.check("del", new)
    made.close()


def test_gc_and_status(runtime: Runtime, netns: str) -> None:
    runtime.network("1.1.0")
    runtime.check("status", netns)
    runtime.check("add", netns)
    runtime.check("gc", netns)  # without a list: libcni itself takes down what it remembers
    assert runtime.agent.book() == {}
    runtime.agent.kill()
    done = runtime("status", netns)
    assert done.returncode != 0
    assert "does not answer" in done.stdout + done.stderr
    runtime.agent.start()
    runtime.check("status", netns)


def test_an_add_that_fails_is_an_error_with_its_words(runtime: Runtime, netns: str) -> None:
    runtime.network("1.0.0")
    done = runtime("add", "/nowhere/at/all")
    assert done.returncode != 0
    assert "namespace is gone" in done.stdout + done.stderr
    assert runtime.agent.book() == {}

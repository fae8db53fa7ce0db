"""System containers on a machine whose init is systemd and that has cgroup v2 alone.

A virtual machine of a box of ours, Debian 13 as `make setup` leaves it, is the host of a lab of its own: the
README's command brings it up there, beside that systemd, and out of the artifacts that are handed in by http.
The machine has no way out.

One story in order, as each step takes a minute where processors are emulated.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import builds, keys, ssh
from lab import render as rendering
from lab.builds import hostbox
from lab.lifecycle import on_nodes
from lab.paths import ROOT
from lab.providers import provider
from lab.render import Rendered
from lab.steps import Steps
from lab.store import Artifact
from tests.lab.vms.conftest import lab_file, needs_libvirt, needs_machines

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-host"
LAB_FILE = f"""\
{lab_file(LAB_ID)}nodes:
  - name: host
    roles: [control-plane]
    memory: 6GiB
"""
INNER_ID = "inner"
INNER = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {INNER_ID}
nodes:
  - name: node-1
    roles: [control-plane, worker]
"""
#: What is promised of every lab, as far as the time goes.
AREAS = ("kernel", "network")
#: What is in a checkout and not of it.
NOT_OF_IT = (".venv", ".vagrant", "__pycache__", "reports", "*.egg-info", ".*_cache", ".hypothesis")
SECONDS = 1800

pytestmark = pytest.mark.timeout(3600)


class Machine:
    """The machine that is a host: commands on it, in its checkout."""

    def __init__(self, lab: Rendered) -> None:
        self.lab = lab

    def __call__(self, script: str) -> str:
        """What a shell script prints there; it must succeed."""
        words = ["sh", "-ec", f"cd {hostbox.PLACE} 2>/dev/null || true\n{script}"]
        done = subprocess.run(
            ssh.argv(self.lab, self.lab.nodes[0], words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def lab_command(self, *words: str) -> Any:
        """The JSON document of a `lab` command."""
        return json.loads(self(shlex.join([".venv/bin/lab", *words, "-o", "json", "--progress=none"])))

    def seen(self) -> dict[str, list[str]]:
        """What there is of what a lab could leave behind."""
        script = "import json; from tests.lab import hoststate as h; "
        script += "print(json.dumps({kind: sorted(found) for kind, found in h.seen().items()}))"
        return json.loads(self(shlex.join([".venv/bin/python", "-c", script])))  # type: ignore[no-any-return]


@contextmanager
def handed_out(address: str, archives: dict[str, list[str]]) -> Iterator[str]:
    """An http server on `address` that gives, under each name, what that `tar` command writes; its URL."""

    class Archives(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with subprocess.Popen(archives[self.path.strip("/")], stdout=subprocess.PIPE) as tar:
                assert tar.stdout
                self.send_response(200)
                self.end_headers()
                shutil.copyfileobj(tar.stdout, self.wfile, 1 << 20)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer((address, 0), Archives) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def tar_of_store(artifacts: list[Artifact]) -> list[str]:
    """The command that writes entries of the store with their manifests, times and attributes."""
    names = [name for artifact in artifacts for name in (artifact.path.name, artifact.manifest_file.name)]
    options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner"]
    return ["tar", f"--directory={artifacts[0].path.parent}", *options, "--create", "--file=-", *names]


def tar_of_checkout() -> list[str]:
    left_out = [f"--exclude={pattern}" for pattern in NOT_OF_IT]
    return ["tar", f"--directory={ROOT}", "--exclude-vcs", *left_out, "--create", "--file=-", "."]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine with a checkout and the artifacts; skipped where the host cannot have one."""
    file = tmp_path_factory.mktemp("host") / "lab.yaml"
    file.write_text(LAB_FILE)
    lab = rendering.render_file(file)
    needs_libvirt()
    needs_machines(lab)
    host = provider(lab)
    host.destroy()
    box = builds.build_all(Steps(), only={hostbox.NAME})[hostbox.NAME].path
    artifacts = builds.build_all(Steps(), for_bundle=True) | builds.build_all(Steps(), only={"node-programs"})
    carried = [one for name, one in artifacts.items() if name != "vm-box"]
    lab.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.ensure(lab)
    rendering.write(lab, LAB_FILE, on_nodes({}))
    try:
        host.create(box, box.parent)
        host.start(lab.nodes[0])
        machine = Machine(lab)
        archives = {"store": tar_of_store(carried), "checkout": tar_of_checkout()}
        with handed_out(lab.gateway, archives) as url:
            store = "/root/.cache/underpass/store"
            machine(f"mkdir -p {store}; curl -sSf {url}/store | tar -C {store} --xattrs-include='*' -xpf -")
            machine(f"curl -sSf {url}/checkout | tar -C {hostbox.PLACE} -xf -")
        machine(f"cat >lab.yaml <<'END'\n{INNER}END")
        yield machine
    finally:
        host.destroy()
        shutil.rmtree(lab.folder, ignore_errors=True)
        Path(file).unlink()
    assert host.leftovers() == []


@pytest.fixture(scope="module")
def before(machine: Machine) -> dict[str, list[str]]:
    """What there was before the lab: setting up is done."""
    machine("make setup")
    return machine.seen()


def test_the_machine_is_debian_under_systemd_with_cgroup_v2_alone(machine: Machine) -> None:
    assert machine("cat /proc/1/comm") == "systemd"
    assert machine("findmnt -n -t cgroup,cgroup2 -o TARGET,FSTYPE").split() == ["/sys/fs/cgroup", "cgroup2"]
    assert machine(". /etc/os-release; echo $ID $VERSION_ID") == "debian 13"
    assert machine("ip route show default") == ""


def test_the_readmes_command_brings_a_lab_up(machine: Machine, before: dict[str, list[str]]) -> None:
    assert f"Lab {INNER_ID} is up" in machine("make up")
    seen = machine.lab_command("status")
    assert seen["api"] == "ok", seen
    assert [(node["state"], node["ready"]) for node in seen["nodes"]] == [("running", True)]


def test_nothing_was_built_there(machine: Machine) -> None:
    made = "find /root/.cache/underpass/store -maxdepth 1 -newer .venv/underpass.json"
    assert machine(f"{made} ! -name store") == ""


def test_the_hosts_systemd_lets_the_lab_be(machine: Machine) -> None:
    """It puts all control groups in order anew when it reads its units again: a lab's are not its own."""
    of_node = f"cat /sys/fs/cgroup/underpass-{INNER_ID}/node-1/payload/cgroup.controllers"
    given = machine(of_node)
    assert {"cpu", "cpuset", "memory", "pids"} <= set(given.split())
    machine("systemctl daemon-reload; systemctl restart systemd-journald.service")
    assert machine(of_node) == given
    assert machine("systemctl list-units --failed --plain --no-legend") == ""


def test_what_is_promised_of_every_lab_holds_there(machine: Machine) -> None:
    told = machine.lab_command("verify", *AREAS)
    assert [line for line in told["promises"] if line["result"] not in ("passed", "skipped")] == []
    assert told["held"]
    assert {line["area"] for line in told["promises"] if line["result"] == "passed"} == set(AREAS)


def test_nothing_stays_behind(machine: Machine, before: dict[str, list[str]]) -> None:
    machine(".venv/bin/lab down --progress=none")
    after = machine.seen()
    assert {kind: sorted(set(before[kind]) ^ set(after[kind])) for kind in before} == {
        kind: [] for kind in before
    }
    assert machine("ls /root/.local/state/underpass/labs") == ""  # its lock, hidden, stays
    assert machine("systemctl list-units --failed --plain --no-legend") == ""

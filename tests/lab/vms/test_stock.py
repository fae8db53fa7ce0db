"""Somebody else's Debian box, by its name: the machine is adopted, and is a node like any other."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab import render as rendering
from lab import ssh
from lab.providers import provider
from tests.lab import hoststate
from tests.lab.command import LabCommand
from tests.lab.vms import stock_box
from tests.lab.vms.conftest import needs_libvirt, needs_machines, vagrant

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-stock"
BOX = "example/trixie"
LAB_FILE = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {LAB_ID}
provider: vagrant
machines:
  box: {BOX}
nodes:
  - name: node-1
    roles: [control-plane, worker]
"""

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's VAGRANT_HOME, to which the box was added; the well-known key is Vagrant's own."""
    home = tmp_path / "home"
    vagrant(home, "box", "list")  # writes the key
    key = home / "insecure_private_key"
    public = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True, check=True)
    work = tmp_path / "work"
    work.mkdir()
    vagrant(home, "box", "add", "--name", BOX, str(stock_box.make(public.stdout, work)))
    shutil.rmtree(work)
    return home


def test_a_stock_box_chosen_by_name_becomes_a_cluster(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(LAB_FILE)
    lab = rendering.render_file(file)
    needs_libvirt()
    needs_machines(lab)
    home: Path = request.getfixturevalue("home")
    command = LabCommand(file, env=(("VAGRANT_HOME", str(home)),))
    command("down", "--progress=none")
    before = hoststate.seen()
    (node,) = lab.nodes

    def ask(script: str) -> str:
        return ssh.on_node(lab, node, ["sh", "-c", script]).stdout.strip()

    try:
        command.check("up", "--progress=plain")
        seen = command.json("status")
        assert seen["api"] == "ok", seen
        assert [(one["state"], one["ready"]) for one in seen["nodes"]] == [("running", True)]

        # No way in but the lab's key, no way out.
        public = (lab.folder / "keys" / "ssh.pub").read_text().split()[:2]
        keys = ask("cat /root/.ssh/authorized_keys* /home/*/.ssh/authorized_keys*").splitlines()
        assert [line.split()[:2] for line in keys] == [public, public]
        assert ask("grep -cv '^[^:]*:[*!]' /etc/shadow || true") == "0"
        assert ask("sshd -T | grep -c '^passwordauthentication yes' || true") == "0"
        assert ask("ip route show default") == ""
        assert ask("cat /etc/apt/sources.list.d/* 2>/dev/null || true") == ""
        for user in ("vagrant", "root"):
            assert "(publickey)" in _refused(home / "insecure_private_key", f"{user}@{node.address}")

        # It is the node that the lab file says, as one from the lab's own box is.
        assert ask("hostname") == node.name
        assert ask("cat /etc/machine-id") not in ("", stock_box.MACHINE_ID)
        links = ask("ip -4 -br addr")
        assert f"{node.address}/{lab.prefix_length}" in links
        assert not [line for line in links.splitlines() if line.startswith("eth")], "it is not the lab's box"
        assert "console=ttyS0,115200" in ask("cat /proc/cmdline")
        told = command.json("verify", "kernel")
        assert told["held"], told
        assert command.json("up")["changed"] == 0

        # Vagrant gets in with the lab's key, as the box's user.
        dot = {"VAGRANT_DOTFILE_PATH": str(Path("/var/lib/libvirt/underpass", LAB_ID, "dot"))}
        assert vagrant(home, "ssh", node.name, "-c", "id -un; sudo id -un", **dot).split() == [
            "vagrant",
            "root",
        ]
        vagrant(home, "destroy", "-f", **dot)
        assert {one["state"] for one in command.json("status")["nodes"]} == {"stopped"}

        # Plain Vagrant adopts it, too, and its Ansible goes on once it is back: its first role is enough.
        ssh.forget(lab)
        vagrant(home, "up", **dot, ANSIBLE_RUN_TAGS="kernel")
        assert ask("hostname; ip route show default; ls /var/lib/underpass-identity/adopted") == (
            f"{node.name}\n/var/lib/underpass-identity/adopted"
        )
    finally:
        command.check("down", "--progress=none")
    assert provider(lab).leftovers() == []
    assert not lab.folder.exists()
    assert hoststate.carrying_its_name(lab, before) == []


def _refused(key: Path, whom: str) -> str:
    """What ssh says when it comes with `key` alone; it must not get in."""
    alone = "-F none -o BatchMode=yes -o IdentitiesOnly=yes -o ConnectTimeout=60"
    strange = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    done = subprocess.run(
        ["ssh", *alone.split(), *strange.split(), "-i", key, whom, "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 255, f"the key lets {whom} in"
    return done.stderr

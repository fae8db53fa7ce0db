"""`lab up` on a lab that is up: it asks the nodes, changes nothing, and mends what was broken by hand."""

from __future__ import annotations

import json
import re

from lab.cluster import Cluster
from lab.provision import provision
from lab.render import Rendered, from_json
from lab.steps import Steps
from tests.lab.command import LabCommand
from tests.lab.conftest import connect


def test_up_again_changes_nothing_and_says_so(lab: Rendered, command: LabCommand) -> None:
    outcome = command.json("up")
    assert outcome["id"] == lab.id
    assert outcome["provider"] == lab.provider
    assert [node["name"] for node in outcome["nodes"]] == [node.name for node in lab.nodes]
    assert outcome["changed"] == 0, [step for step in outcome["steps"] if step["changed"]]
    assert all(step["seconds"] >= 0 and step["status"] == "done" for step in outcome["steps"])


FILES = (
    "/etc/kubernetes/kubelet.yaml",
    "/etc/containerd/config.toml",
    "/etc/systemd/system/kubelet.service",
)


def test_files_changed_by_hand_are_found_and_mended(lab: Rendered, command: LabCommand) -> None:
    hosts = {node.name: connect(lab, node) for node in lab.nodes}
    before = {(name, path): hosts[name].file(path).content for name in hosts for path in FILES}
    for name, path in before:
        hosts[name].check_output("sh -c 'echo \"# a hand was here\" >> %s'" % path)
    assert command.json("up")["changed"] >= 1
    assert {(name, path): hosts[name].file(path).content for name, path in before} == before
    assert command.json("up")["changed"] == 0


def test_units_stopped_by_hand_are_found_and_started(lab: Rendered, command: LabCommand) -> None:
    hosts = [connect(lab, node) for node in lab.nodes]
    units = ("kubelet", "containerd")
    for host in hosts:
        host.check_output("systemctl stop kubelet containerd")
        assert not any(host.service(unit).is_running for unit in units)
    assert command.json("up")["changed"] >= 1
    assert all(host.service(unit).is_running for host in hosts for unit in units)


def test_a_certificate_removed_by_hand_is_found_and_put_back(
    lab: Rendered, command: LabCommand, cluster: Cluster
) -> None:
    host = connect(lab, lab.control_plane)
    pki = "/etc/kubernetes/pki"
    names = host.check_output("find %s -name 'apiserver*.crt'", pki).split()
    assert names
    before = {name: host.file(name).content for name in names}
    host.check_output("rm " + " ".join(names))
    assert command.json("up")["changed"] >= 1
    assert {name: host.file(name).content for name in names} == before
    assert cluster.health() == "ok"


def test_a_plane_that_was_stopped_comes_back(lab: Rendered, command: LabCommand, cluster: Cluster) -> None:
    host = connect(lab, lab.control_plane)
    host.check_output("systemctl stop kube-apiserver kube-scheduler")
    assert cluster.health() != "ok"
    assert command.json("up")["changed"] >= 1
    assert cluster.health() == "ok"


#: All that a playbook could change on a node: files and links with their modes, units, kernel settings.
STATE_OF_A_NODE = r"""
find /etc /opt /usr/local /var/lib/underpass -xdev ! -type d -printf '%p %m %l\\n' | LC_ALL=C sort
find /etc /opt /usr/local /var/lib/underpass -xdev -type f -exec sha256sum {} + | LC_ALL=C sort
systemctl list-units --all --plain --no-legend --type=service | awk '{ print $1, $3, $4 }'
systemctl list-unit-files --no-legend --type=service
systemctl show --property=InvocationID kubelet containerd underpass-agent underpass-datapath
sysctl net.ipv4 2>/dev/null | grep -E 'forward|rp_filter'
"""


def test_check_mode_finds_what_is_wrong_and_changes_nothing(lab: Rendered, command: LabCommand) -> None:
    host = connect(lab, lab.nodes[-1])
    host.check_output("sh -c 'echo \"# a hand was here\" >> /etc/kubernetes/kubelet.yaml'")
    host.check_output("rm /etc/containerd/config.toml /etc/kubernetes/pki/kubelet-client.crt")
    host.check_output("systemctl stop kubelet")
    try:
        before = [connect(lab, node).check_output(STATE_OF_A_NODE) for node in lab.nodes]
        with (steps := Steps()).step("check", "Check"):
            result = provision(lab, "up.yaml", steps, check=True)
        found = {what.rpartition(": ")[2] for what in result.what}
        assert {"Run containerd", "Run kubelet"} <= found
        assert [connect(lab, node).check_output(STATE_OF_A_NODE) for node in lab.nodes] == before
    finally:
        command.check("up")


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(lab: Rendered, command: LabCommand) -> None:
    outcome = command.json("upgrade")
    assert outcome["changed"] == 0, [step for step in outcome["steps"] if step["changed"]]


def test_an_upgrade_takes_each_node_out_of_service_and_puts_it_back(
    lab: Rendered, command: LabCommand, cluster: Cluster
) -> None:
    """A kubelet of another release is what an upgrade finds; this one runs from a copy elsewhere."""
    node = lab.nodes[-1]
    host = connect(lab, node)
    host.check_output("cp /opt/underpass/current/kubernetes/bin/kubelet /root/kubelet-of-old")
    host.check_output(
        "sed -i 's|^ExecStart=[^ ]*|ExecStart=/root/kubelet-of-old|' /etc/systemd/system/kubelet.service"
    )
    host.check_output("systemctl daemon-reload && systemctl restart kubelet")
    try:
        assert command.json("upgrade")["changed"] >= 1
        logs = command.check("logs", "-n", "1000").stdout
    finally:
        host.check_output("rm -f /root/kubelet-of-old")
    for verb in ("drain", "uncordon"):
        assert re.search(rf"changed: \[{node.name} -> .*'{verb}', '{node.name}'", logs), verb
    running = host.check_output("readlink -f /proc/$(systemctl show -P MainPID kubelet)/exe")
    assert "/kubernetes-" in running, "kubelet was not exchanged"
    seen = json.loads(cluster.kubectl("get", "node", node.name, "-o", "json").stdout)
    assert not seen["spec"].get("unschedulable"), "it was not put back into service"
    assert command.json("up")["changed"] == 0


def test_kubectl_passes_arguments_and_status_through(command: LabCommand) -> None:
    done = command.check("kubectl", "get", "nodes", "-o", "json")
    assert json.loads(done.stdout)["kind"] == "List"
    assert command("kubectl", "get", "nosuchthing").returncode == 1
    piped = command.check("kubectl", "apply", "--dry-run=server", "-f", "-", stdin=NAMESPACE)
    assert "namespace/through" in piped.stdout


def test_exec_passes_arguments_and_status_through(lab: Rendered, command: LabCommand) -> None:
    node = lab.nodes[-1].name
    assert command.check("exec", node, "--", "echo", "a  b", "$HOME").stdout == "a  b $HOME\n"
    assert command("exec", node, "--", "sh", "-c", "exit 7").returncode == 7
    assert "no node" in command("exec", "nowhere", "--", "true").stderr


def test_a_shell_is_one_on_the_node(lab: Rendered, command: LabCommand) -> None:
    node = lab.nodes[-1].name
    assert command.check("shell", node, stdin="hostname\n").stdout.splitlines()[-1] == node


def test_what_the_lab_file_means_is_rendered_as_it_is(lab: Rendered, command: LabCommand) -> None:
    files = {path: path.read_bytes() for path in lab.folder.glob("*") if path.is_file()}
    assert from_json(command.json("render")) == lab
    assert {path: path.read_bytes() for path in files} == files


NAMESPACE = """\
apiVersion: v1
kind: Namespace
metadata:
  name: through
"""

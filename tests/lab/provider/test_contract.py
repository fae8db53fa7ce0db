"""What every provider of nodes promises (lab/providers/base.py), on real nodes."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from lab import builds
from lab.errors import ExitCode, LabError
from lab.providers import provider as make_provider
from lab.providers.base import STORE_ON_NODE, NodeState, Provider
from lab.render import RenderedNode
from lab.steps import side_by_side
from tests.lab import hoststate
from tests.lab.provider.conftest import ONE, TWO, on, rendered, states
from tests.lab.waiting import until
from tests.sizes import SIZES


def test_nothing_is_there_before_it_is_made(provider: Provider) -> None:
    provider.destroy()
    assert states(provider) == {NodeState.ABSENT}
    assert provider.leftovers() == []


def test_a_node_that_was_not_made_cannot_be_started(provider: Provider) -> None:
    provider.destroy()
    with pytest.raises(LabError, match="never made") as refused:
        provider.start(provider.lab.nodes[0])
    assert refused.value.code is ExitCode.NOT_THERE
    assert refused.value.hint


def test_making_and_starting_change_something_once(provider: Provider, image: Path) -> None:
    provider.destroy()
    assert provider.create(image, image.parent) > 0
    assert states(provider) == {NodeState.STOPPED}
    assert provider.create(image, image.parent) == 0
    assert side_by_side(provider.start, provider.lab.nodes) == len(provider.lab.nodes)
    assert states(provider) == {NodeState.RUNNING}
    assert side_by_side(provider.start, provider.lab.nodes) == 0
    assert provider.create(image, image.parent) == 0


def test_a_node_has_its_name_its_address_and_python(running: Provider) -> None:
    for node in running.lab.nodes:
        assert on(running, node, "hostname") == node.name
        assert f"{node.address}/{running.lab.prefix_length}" in on(running, node, "ip -4 addr show")
        assert on(running, node, "/usr/bin/python3 -c 'print(6 * 7)'") == "42"


def test_a_node_proves_itself_with_the_host_key_that_the_lab_made(running: Provider) -> None:
    for node in running.lab.nodes:
        public = running.lab.folder / "keys" / "hosts" / node.name / "ssh_host_ed25519_key.pub"
        scanned = subprocess.run(
            ["ssh-keyscan", "-t", "ed25519", node.address], capture_output=True, text=True, check=True
        )
        assert scanned.stdout.split()[1:3] == public.read_text().split()[:2]


def test_no_password_opens_a_node(running: Provider) -> None:
    node = running.lab.nodes[0]
    done = subprocess.run(
        [
            *shlex.split("ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityFile=/dev/null"),
            *shlex.split("-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -l root"),
            *(node.address, "true"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 255
    assert "(publickey)" in done.stderr


def test_nodes_reach_each_other_and_the_host_reaches_them(running: Provider) -> None:
    one, two = running.lab.nodes
    for here, there in ((one, two), (two, one)):
        script = f"import socket; print(socket.create_connection(('{there.name}', 22), 5).recv(4))"
        assert on(running, here, f"python3 -c {shlex.quote(script)}") == "b'SSH-'"
        with socket.create_connection((there.address, 22), timeout=5) as connection:
            assert connection.getsockname()[0] == running.lab.gateway


def test_the_way_out_is_the_gateway_or_none(running: Provider) -> None:
    for node in running.lab.nodes:
        way = on(running, node, "ip route show default")
        assert f"via {running.lab.gateway}" in way if running.routed else way == ""


def test_every_node_has_an_identity_of_its_own(running: Provider) -> None:
    ids = {on(running, node, "cat /etc/machine-id") for node in running.lab.nodes}
    assert len(ids) == len(running.lab.nodes)
    assert all(len(each) == 32 for each in ids)


def test_the_store_is_there_and_cannot_be_written(running: Provider) -> None:
    images = builds.locate()["images"].path
    for node in running.lab.nodes:
        assert images.name in on(running, node, f"ls {STORE_ON_NODE}").split()
        refusal = on(running, node, f"touch {STORE_ON_NODE}/mine 2>&1 || true")
        assert "Read-only file system" in refusal


def test_one_nodes_files_are_not_the_others(running: Provider) -> None:
    one, two = running.lab.nodes
    on(running, one, "echo secret > /root/mine")
    assert on(running, two, "cat /root/mine 2>&1", ok=False).endswith("No such file or directory")


def test_the_console_tells_of_the_boot(running: Provider) -> None:
    for node in running.lab.nodes:
        console = running.console(node, 500)
        assert "multi-user.target" in console or "Multi-User System" in console
        assert "\x1b" not in console
    assert len(running.console(running.lab.nodes[0], 3).splitlines()) == 3


def test_stopping_and_starting_keeps_what_nodes_wrote(running: Provider) -> None:
    for round in range(SIZES.stop_starts):
        before = {}
        for node in running.lab.nodes:
            write = f"mkdir -p /var/lib/etcd; echo {round} > /root/kept; echo {round} > /var/lib/etcd/kept"
            on(running, node, write)
            before[node.name] = on(running, node, "cat /etc/machine-id /proc/sys/kernel/random/boot_id")
        assert side_by_side(running.stop, running.lab.nodes) == len(running.lab.nodes)
        assert states(running) == {NodeState.STOPPED}
        assert side_by_side(running.stop, running.lab.nodes) == 0
        assert side_by_side(running.start, running.lab.nodes) == len(running.lab.nodes)
        for node in running.lab.nodes:
            assert on(running, node, "cat /root/kept /var/lib/etcd/kept") == f"{round}\n{round}"
            after = on(running, node, "cat /etc/machine-id /proc/sys/kernel/random/boot_id")
            assert after.split()[0] == before[node.name].split()[0]
            assert after.split()[1] != before[node.name].split()[1]


def test_a_node_is_told_before_it_is_powered_off(running: Provider) -> None:
    node = running.lab.nodes[0]
    unit = '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStop=/bin/sh -c "echo in order > /root/told"'
    on(running, node, f"printf %s {shlex.quote(unit)} > /etc/systemd/system/told.service; rm -f /root/told")
    on(running, node, "systemctl daemon-reload && systemctl start told")
    running.stop(node)
    running.start(node)
    assert on(running, node, "cat /root/told") == "in order"


def test_a_node_whose_power_was_cut_starts_again(running: Provider) -> None:
    for _ in range(SIZES.power_losses):
        for node in running.lab.nodes:
            on(running, node, "echo safe > /root/synced; sync")
        stop = [running.stop(node, force=True) for node in running.lab.nodes]
        assert stop == [1] * len(running.lab.nodes)
        assert states(running) == {NodeState.STOPPED}
        side_by_side(running.start, running.lab.nodes)
        for node in running.lab.nodes:
            assert on(running, node, "cat /root/synced") == "safe"


def test_a_reboot_is_a_new_boot(running: Provider) -> None:
    node = running.lab.nodes[1]
    before = on(running, node, "cat /proc/sys/kernel/random/boot_id")
    assert running.reboot(node) == 2
    assert on(running, node, "cat /proc/sys/kernel/random/boot_id") != before


def test_a_node_that_no_longer_answers_is_mended_by_starting_it(running: Provider) -> None:
    node = running.lab.nodes[0]
    on(running, node, "systemd-run --on-active=0 systemctl stop ssh.service ssh.socket", ok=False)
    until(lambda: not _takes_connections(node), "sshd has stopped", 30)
    assert running.start(node) == 1
    assert on(running, node, "hostname") == node.name


def _takes_connections(node: RenderedNode) -> bool:
    try:
        socket.create_connection((node.address, 22), 2).close()
    except OSError:
        return False
    return True


def test_running_disks_are_neither_saved_nor_restored(running: Provider) -> None:
    if running.snapshots_run:
        pytest.skip("snapshots are of running nodes here: the next but one")
    for act in (running.snapshot_save, running.snapshot_restore):
        with pytest.raises(LabError, match="runs") as refused:
            act("no")
        assert refused.value.hint
    assert running.snapshots() == []


def test_a_snapshot_brings_the_disks_back(running: Provider) -> None:
    if running.snapshots_run:
        pytest.skip("snapshots are of running nodes here: the next")
    node = running.lab.nodes[0]
    on(running, node, "echo old > /root/state; echo old > /var/lib/kubelet/state; rm /etc/debian_version")
    side_by_side(running.stop, running.lab.nodes)
    assert running.snapshot_save("before") == 1
    running.start(node)
    on(running, node, "echo new > /root/state; echo new > /var/lib/kubelet/state; touch /etc/debian_version")
    running.stop(node)
    assert running.snapshots() == ["before"]
    assert running.snapshot_restore("before") == 1
    running.start(node)
    assert on(running, node, "cat /root/state /var/lib/kubelet/state") == "old\nold"
    assert on(running, node, "ls /etc/debian_version 2>&1", ok=False).endswith("No such file or directory")
    assert running.snapshot_delete("before") == 1
    assert running.snapshots() == []


def test_a_snapshot_of_running_nodes_brings_memory_and_disks_back(running: Provider) -> None:
    if not running.snapshots_run:
        pytest.skip("snapshots are of disks here")
    boot = "cat /proc/sys/kernel/random/boot_id"
    write = "echo {0} > /root/state; echo {0} > /run/state"
    before = [on(running, node, f"{write.format('old')}; {boot}") for node in running.lab.nodes]
    assert running.snapshot_save("before") == 1
    assert states(running) == {NodeState.RUNNING}
    for node in running.lab.nodes:
        on(running, node, write.format("new"))
    assert running.snapshots() == ["before"]
    assert running.snapshot_restore("before") == 1
    for node, booted in zip(running.lab.nodes, before, strict=True):
        assert on(running, node, "cat /root/state /run/state") == "old\nold"
        assert on(running, node, boot) == booted, "it was booted, not brought back"
    assert running.snapshot_delete("before") == 1
    assert running.snapshots() == []


def test_a_node_that_left_the_lab_file_is_removed(running: Provider, image: Path) -> None:
    smaller = make_provider(rendered(running.lab.provider, ONE))
    assert smaller.create(image, image.parent) > 0
    one, two = running.lab.nodes
    assert running.status(two) is NodeState.ABSENT
    assert running.status(one) is NodeState.RUNNING
    assert smaller.create(image, image.parent) == 0


def test_a_node_cannot_take_another_address_while_it_runs(running: Provider, image: Path) -> None:
    swapped = make_provider(rendered(running.lab.provider, TWO, ONE))
    with pytest.raises(LabError, match="runs as") as refused:
        swapped.create(image, image.parent)
    assert refused.value.hint
    assert on(running, running.lab.nodes[0], "hostname") == "one"


def test_destroying_leaves_the_host_as_it_was(provider: Provider, image: Path) -> None:
    provider.destroy()
    before = hoststate.seen()
    provider.create(image, image.parent)
    side_by_side(provider.start, provider.lab.nodes)
    for node in provider.lab.nodes:
        on(provider, node, "mount -t tmpfs none /mnt; ip netns add left; ip link add left type bridge")
        on(provider, node, "setsid sleep 999 < /dev/null > /dev/null 2>&1 &")
    left = hoststate.left_by if provider.name == "nspawn" else hoststate.carrying_its_name
    assert left(provider.lab, before) != []
    assert provider.leftovers() != []
    assert provider.destroy() > 0
    assert provider.leftovers() == []
    assert left(provider.lab, before) == []
    assert provider.destroy() == 0
    assert states(provider) == {NodeState.ABSENT}


def test_what_is_left_is_found_although_the_labs_folder_is_gone(running: Provider) -> None:
    folder = running.lab.folder / "nodes"
    if not folder.exists():
        pytest.skip("the provider keeps nothing in the lab's folder")
    away = folder.with_name("nodes-away")
    folder.rename(away)
    with contextlib.ExitStack() as put_back:
        put_back.callback(lambda: subprocess.run(["rm", "-rf", str(away)], check=True))
        assert states(running) == {NodeState.RUNNING}
        assert running.leftovers() != []
        running.destroy()
        assert running.leftovers() == []

"""What is true of nodes that share the host's kernel, and of what they need on the host."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.errors import ExitCode, LabError
from lab.providers.base import NodeState, Provider
from lab.providers.nspawn import Nspawn, launch
from lab.providers.nspawn.cgroups import Cgroups
from lab.providers.nspawn.settings import WANTED
from lab.render import Rendered
from lab.steps import side_by_side
from tests.lab import power
from tests.lab.provider.conftest import on, states
from tests.lab.waiting import until
from tests.sizes import SIZES


@pytest.fixture(autouse=True)
def _only_nspawn(provider: Provider) -> None:
    if not isinstance(provider, Nspawn):
        pytest.skip("of nspawn alone")


def test_nodes_come_back_after_all_their_processes_were_killed(running: Provider) -> None:
    for _ in range(SIZES.power_losses):
        for node in running.lab.nodes:
            on(running, node, "echo safe > /root/synced; sync")
        power.cut(running.lab)
        assert side_by_side(running.start, running.lab.nodes) == len(running.lab.nodes)
        for node in running.lab.nodes:
            assert on(running, node, "cat /root/synced; systemctl is-system-running") == "safe\nrunning"


START = """
import sys
from pathlib import Path
from lab import render
from lab.providers import provider
from lab.render import Rendered
from lab.steps import side_by_side

made = provider(render.read(sys.argv[1]))
image = Path(sys.argv[2])
made.create(image, image.parent)
side_by_side(made.start, made.lab.nodes)
"""


def _launched() -> bool:
    """Whether a program that starts a node is at work somewhere."""
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if launch.__file__.encode() in words.read_bytes():
                return True
    return False


MOMENTS: dict[str, Callable[[Rendered], bool]] = {
    "the switch is made": lambda lab: Path("/run/netns", lab.switch).exists(),
    "the first disk is made": lambda lab: (lab.folder / "nodes/disks" / lab.nodes[0].name).exists(),
    "a node's namespace is made": lambda lab: Path("/run/netns", lab.nodes[0].machine).exists(),
    "a node's cgroups are made": lambda lab: bool(Cgroups(lab.nodes[0].cgroup).existing()),
    "a node is launched": lambda lab: _launched(),
    "a node's first process is there": lambda lab: bool(Cgroups(lab.nodes[0].cgroup).processes()),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_start_killed_at_any_moment_is_finished_by_the_next(
    provider: Provider, image: Path, moment: str
) -> None:
    lab = provider.lab
    provider.destroy()
    deadline = time.monotonic() + 30
    with subprocess.Popen([sys.executable, "-c", START, lab.id, str(image)]) as killed:
        while not MOMENTS[moment](lab):
            assert killed.poll() is None, "it ended before the moment came"
            assert time.monotonic() < deadline
        killed.kill()
    provider.create(image, image.parent)
    side_by_side(provider.start, lab.nodes)
    assert states(provider) == {NodeState.RUNNING}
    assert provider.create(image, image.parent) == 0
    for node in lab.nodes:
        assert on(provider, node, "hostname") == node.name


@pytest.mark.parametrize("moment", ["the first cgroup is gone", "the disks begin to go"])
def test_a_destroy_killed_at_any_moment_is_finished_by_the_next(running: Provider, moment: str) -> None:
    lab = running.lab
    gone: dict[str, Callable[[], bool]] = {
        "the first cgroup is gone": lambda: (
            not all(folder.is_dir() for node in lab.nodes for folder in Cgroups(node.cgroup).folders())
        ),
        "the disks begin to go": lambda: (
            not all((lab.folder / "nodes/disks" / node.name / "image.json").exists() for node in lab.nodes)
        ),
    }
    script = START.split("image =", maxsplit=1)[0] + "made.destroy()"
    with subprocess.Popen([sys.executable, "-c", script, lab.id]) as killed:
        while not gone[moment]() and killed.poll() is None:
            continue
        killed.kill()
    running.destroy()
    assert running.leftovers() == []


def test_nodes_come_back_after_the_host_lost_everything_but_its_disk(stopped: Provider, image: Path) -> None:
    lab = stopped.lab
    Cgroups(lab.cgroup).remove()
    subprocess.run(["ip", "link", "del", lab.uplink], check=True)
    subprocess.run(["ip", "netns", "del", lab.switch], check=True)
    assert stopped.create(image, image.parent) > 0
    assert side_by_side(stopped.start, lab.nodes) == len(lab.nodes)
    assert on(stopped, lab.nodes[0], "hostname") == lab.nodes[0].name


def test_processes_left_in_a_nodes_cgroup_are_ended_before_it_starts(stopped: Provider) -> None:
    node = stopped.lab.nodes[0]
    cgroups = Cgroups(node.cgroup)
    cgroups.make()
    with subprocess.Popen(["sleep", "600"]) as left:
        for folder in cgroups.folders():
            (folder / "cgroup.procs").write_text(str(left.pid))
        assert stopped.status(node) is NodeState.STOPPED
        assert stopped.start(node) == 1
        assert left.wait(5) == -signal.SIGKILL


def test_a_programs_attachment_and_a_link_do_not_outlive_a_power_off(running: Provider) -> None:
    node = running.lab.nodes[0]
    on(running, node, "ip link add vx0 type vxlan external dstport 8472 && mkdir /sys/fs/bpf/kept")
    before = Path(f"/sys/fs/cgroup/unified/{node.cgroup}/payload")
    inode = before.stat().st_ino if before.exists() else None
    running.reboot(node)
    assert "vx0" not in on(running, node, "ip -br link")
    assert on(running, node, "ls /sys/fs/bpf | grep kept", ok=False) == ""
    assert inode is None or before.stat().st_ino != inode


def test_nodes_share_no_pinned_map(running: Provider) -> None:
    one, two = running.lab.nodes
    create = "bpftool map create /sys/fs/bpf/mine type hash key 4 value 4 entries 8 name mine"
    on(running, one, f"rm -f /sys/fs/bpf/mine; {create}")
    assert "mine" in on(running, one, "ls /sys/fs/bpf").split()
    assert "mine" not in on(running, two, "ls /sys/fs/bpf").split()
    assert not Path("/sys/fs/bpf/mine").exists()


def test_everything_in_a_node_is_below_its_cgroup(running: Provider) -> None:
    for node in running.lab.nodes:
        mine = Cgroups(node.cgroup).processes()
        inside = int(on(running, node, "ps -e --no-headers | wc -l"))
        assert len(mine) >= inside - 3  # ps, wc and the shell of the question are gone again


def test_limits_of_the_lab_file_hold(running: Provider) -> None:
    one, two = running.lab.nodes
    assert two.cpus is not None and two.memory is not None
    assert Cgroups(two.cgroup).limit(two.cpus, two.memory) == 0
    assert Cgroups(one.cgroup).limit(None, None) == 0
    fill = "b = bytearray(1300 << 20); print(len(b))"
    assert on(running, two, f"python3 -c '{fill}'", ok=False) == ""
    assert on(running, one, f"python3 -c '{fill}'") == str(1300 << 20)


def test_a_limit_changed_in_the_lab_file_is_set_on_the_running_node(running: Provider, image: Path) -> None:
    two = running.lab.nodes[1]
    assert Cgroups(two.cgroup).limit(0.5, two.memory) == 1
    assert running.create(image, image.parent) == 1
    assert running.create(image, image.parent) == 0


def test_no_mount_of_a_node_is_seen_on_the_host(running: Provider) -> None:
    on(running, running.lab.nodes[0], "mkdir -p /mnt/seen && mount -t tmpfs seen /mnt/seen")
    table = Path("/proc/self/mountinfo").read_text()
    assert str(running.lab.folder) not in table
    assert "/mnt/seen" not in table


def test_the_hosts_kernel_settings_stay_the_hosts(running: Provider) -> None:
    node = running.lab.nodes[0]
    hosts = {name: Path("/proc/sys", name).read_text() for name in (*WANTED, "net/ipv4/ip_forward")}
    for name, value in WANTED.items():
        assert on(running, node, f"cat /proc/sys/{name}") == value
    refusal = on(running, node, "echo 3 > /proc/sys/vm/swappiness", ok=False)
    assert refusal == ""
    on(running, node, "echo 1 > /proc/sys/net/ipv4/ip_forward")
    assert on(running, node, "cat /proc/sys/net/ipv4/ip_forward") == "1"
    for name, value in hosts.items():
        assert Path("/proc/sys", name).read_text() == value


def test_containerd_can_mount_overlays_of_its_own(running: Provider) -> None:
    script = """
    set -e; mkdir -p /var/lib/containerd/try; cd /var/lib/containerd/try; mkdir l u w m
    mount -t overlay try -o lowerdir=l,upperdir=u,workdir=w m; touch m/written; umount m
    ls u; cd /; rm -r /var/lib/containerd/try
    """
    assert on(running, running.lab.nodes[0], script) == "written"


def test_legacy_hierarchies_can_be_made_writable_for_kubelet(running: Provider) -> None:
    node = running.lab.nodes[0]
    for name in on(running, node, "awk '$3 == \"cgroup\" {print $2}' /proc/mounts").split():
        if name.endswith("/systemd"):
            continue  # systemd's own, writable from the start
        script = f"mount -o remount,rw,bind {name} && mkdir {name}/try && rmdir {name}/try && echo done"
        assert on(running, node, script) == "done"


def test_the_nodes_journal_does_not_hold_the_hosts_kernel_log(running: Provider) -> None:
    for node in running.lab.nodes:
        assert on(running, node, "journalctl -b -k -q --no-pager | wc -l") == "0"


def test_a_cable_pulled_by_hand_is_plugged_in_again(running: Provider, image: Path) -> None:
    lab, node = running.lab, running.lab.nodes[0]
    subprocess.run(["ip", "-n", lab.switch, "link", "del", node.host_link], check=True)
    assert running.create(image, image.parent) > 0
    assert on(running, node, "hostname") == node.name
    assert running.create(image, image.parent) == 0


def test_a_lost_name_of_a_running_nodes_namespace_is_given_back(running: Provider, image: Path) -> None:
    node = running.lab.nodes[0]
    subprocess.run(["ip", "netns", "del", node.machine], check=True)
    assert running.create(image, image.parent) == 1
    seen = subprocess.run(["ip", "-n", node.machine, "addr"], capture_output=True, text=True, check=True)
    assert node.address in seen.stdout
    assert on(running, node, "hostname") == node.name


def test_a_name_that_stands_for_the_hosts_own_network_is_refused(stopped: Provider, image: Path) -> None:
    lab = stopped.lab
    subprocess.run(["ip", "netns", "del", lab.switch], check=True)
    # The kernel takes the cable to the host away a moment later.
    until(
        lambda: not Path(f"/sys/class/net/{lab.uplink}").exists(),
        "the uplink has gone with its namespace",
        30,
    )
    subprocess.run(["ip", "netns", "attach", lab.switch, str(os.getpid())], check=True)
    before = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    try:
        with pytest.raises(LabError, match="is the host's own") as refused:
            stopped.create(image, image.parent)
        assert refused.value.hint
        after = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
        assert after == before
    finally:
        subprocess.run(["ip", "netns", "del", lab.switch], check=True)
    assert stopped.create(image, image.parent) > 0


def test_a_lost_address_and_route_are_set_again(running: Provider, image: Path) -> None:
    lab, node = running.lab, running.lab.nodes[0]
    subprocess.run(["ip", "-n", node.machine, "addr", "flush", "dev", "eth0"], check=True)
    subprocess.run(["ip", "addr", "flush", "dev", lab.uplink], check=True)
    assert running.create(image, image.parent) >= 3
    assert f"via {lab.gateway}" in on(running, node, "ip route show default")


def test_the_hosts_end_of_the_uplink_has_a_mac_that_udev_lets_be(running: Provider) -> None:
    net_addr_set = 3  # by whoever made the link; else by the kernel at random
    assert int(Path("/sys/class/net", running.lab.uplink, "addr_assign_type").read_text()) == net_addr_set


def test_frames_between_nodes_meet_no_firewall_of_the_host(running: Provider) -> None:
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    assert running.lab.uplink in links
    assert running.lab.bridge not in links
    assert not any(node.host_link in links for node in running.lab.nodes)


def test_a_node_that_cannot_boot_fails_with_the_end_of_its_console(stopped: Provider) -> None:
    node = stopped.lab.nodes[0]
    init = stopped.lab.folder / "nodes/disks" / node.name / "upper/usr/lib/systemd/systemd"
    init.parent.mkdir(parents=True, exist_ok=True)
    assert not init.exists()
    init.write_text("#!/bin/sh\necho the disk is a teapot\nexit 1\n")
    init.chmod(0o755)
    try:
        with pytest.raises(LabError, match="ended while it booted") as failed:
            stopped.start(node)
    finally:
        init.unlink()
    assert failed.value.code is ExitCode.NODE
    assert "the disk is a teapot" in failed.value.details
    assert failed.value.hint
    assert stopped.status(node) is NodeState.STOPPED
    assert stopped.start(node) == 1

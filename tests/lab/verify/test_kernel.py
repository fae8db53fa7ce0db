"""Area kernel: the nodes run on a kernel and a userland that the datapath can work with."""

from __future__ import annotations

import json
from typing import Any

from lab.render import RenderedNode
from tests.lab.conftest import Evidence

FLOOR = (6, 6)


def test_kernel_is_new_enough(host: Any, evidence: Evidence) -> None:
    """The node's kernel is 6.6 or newer"""
    release = host.check_output("uname -r")
    evidence(release)
    assert tuple(int(part) for part in release.split("-")[0].split(".")[:2]) >= FLOOR


def test_userland_is_debian_13(host: Any, evidence: Evidence) -> None:
    """The node's userland is Debian 13"""
    evidence(f"{host.system_info.distribution} {host.system_info.release}")
    assert host.system_info.distribution == "debian"
    assert host.system_info.release.startswith("13")


def test_kernel_describes_its_types(host: Any, evidence: Evidence) -> None:
    """The kernel carries its own type information (BTF)"""
    size = host.file("/sys/kernel/btf/vmlinux").size
    evidence(f"{size} bytes")
    assert size > 1_000_000


def test_bcc_compiles_and_loads_a_program(host: Any, evidence: Evidence) -> None:
    """BCC compiles a tc program on the node and the kernel takes it"""
    done = host.run(
        "python3 -c \"from bcc import BPF; b = BPF(text='int f(struct __sk_buff *s) { return 0; }'); "
        "print(b.load_func('f', BPF.SCHED_CLS).fd)\""
    )
    evidence("loaded" if done.rc == 0 else done.stderr.strip()[-200:])
    assert done.rc == 0
    assert int(done.stdout) >= 0


def test_cgroup_v2_is_there(host: Any, evidence: Evidence) -> None:
    """The node has a cgroup v2 tree of its own for BPF programs to attach to"""
    mount = host.check_output("findmnt -n -t cgroup2 -o TARGET | head -n 1")
    evidence(mount)
    assert mount.startswith("/sys/fs/cgroup")


def test_bpf_file_system_is_the_nodes_own(host: Any, node: RenderedNode, evidence: Evidence) -> None:
    """The node has a BPF file system of its own"""
    kind = host.check_output("stat -f -c %T /sys/fs/bpf")
    mark = f"/sys/fs/bpf/only-{node.name}"
    host.check_output("mkdir -p %s", mark)
    try:
        others = host.check_output("ls /sys/fs/bpf").split()
        evidence(f"{kind}; marks seen: {[name for name in others if name.startswith('only-')]}")
        assert kind == "bpf_fs"
        assert [name for name in others if name.startswith("only-")] == [f"only-{node.name}"]
    finally:
        host.check_output("rmdir %s", mark)


def test_the_overlay_takes_each_packets_own_tunnel(host: Any, evidence: Evidence) -> None:
    """The node's VXLAN device takes the tunnel of each packet from the datapath (external mode)"""
    devices = json.loads(host.check_output("ip -j -d link show type vxlan"))
    evidence([device["ifname"] for device in devices])
    assert [device["linkinfo"]["info_data"].get("external") for device in devices] == [True]

"""Finding the host's cgroup hierarchies, and limits written as each version wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import ExitCode, LabError
from lab.providers.nspawn.cgroups import Cgroups, Hierarchy, parse

PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

HYBRID = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_a_host_with_v2_alone_has_one_hierarchy() -> None:
    assert parse(PURE) == [Hierarchy(Path("/sys/fs/cgroup"), 2, frozenset())]


def test_a_hybrid_host_has_v2_first_and_every_v1_hierarchy() -> None:
    found = parse(HYBRID)
    assert found[0] == Hierarchy(Path("/sys/fs/cgroup/unified"), 2, frozenset())
    assert {(str(each.mount), each.controllers) for each in found[1:]} == {
        ("/sys/fs/cgroup/cpu,cpuacct", frozenset({"cpu", "cpuacct"})),
        ("/sys/fs/cgroup/memory", frozenset({"memory"})),
        ("/sys/fs/cgroup/systemd", frozenset({"name=systemd"})),
    }


def test_a_hierarchy_mounted_twice_or_in_part_counts_once() -> None:
    again = "50 1 0:38 / /mnt/again rw - cgroup2 cgroup2 rw\n"
    part = "51 1 0:99 /docker/x /mnt/part rw - cgroup cgroup rw,pids\n"
    assert parse(HYBRID + again + part) == parse(HYBRID)


def test_a_mount_point_with_a_space_is_read_as_it_is() -> None:
    assert parse("30 23 0:26 / /sys/my\\040cgroup rw - cgroup2 none rw")[0].mount == Path("/sys/my cgroup")


def test_systemd_divides_v2_and_its_own_hierarchy_alone() -> None:
    assert {each.mount.name for each in parse(HYBRID) if each.divided} == {"unified", "systemd"}


def _v2(root: Path, controllers: str) -> Cgroups:
    """A v2 hierarchy of plain files: what the kernel would offer in each directory is put there."""
    for folder in (root, root / "lab", root / "lab" / "node"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text("")
    (root / "lab" / "node" / "cpu.max").write_text("max 100000\n")
    (root / "lab" / "node" / "memory.max").write_text("max\n")
    return Cgroups("lab/node", [Hierarchy(root, 2, frozenset())])


def test_controllers_are_enabled_above_the_node_and_not_in_it(tmp_path: Path) -> None:
    node = _v2(tmp_path, "memory misc")
    assert node.make() == 0
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    assert (tmp_path / "lab" / "cgroup.subtree_control").read_text() == "+memory"
    assert (tmp_path / "lab" / "node" / "cgroup.subtree_control").read_text() == ""


def test_directories_that_are_missing_are_made_and_counted(tmp_path: Path) -> None:
    node = Cgroups("lab/node", [Hierarchy(tmp_path, 2, frozenset())])
    assert node.existing() == []
    assert node.make() == 2
    assert node.make() == 0
    assert node.existing() == [tmp_path / "lab" / "node"]


def test_limits_on_v2_are_written_once(tmp_path: Path) -> None:
    node = _v2(tmp_path, "cpu memory")
    assert node.limit(1.5, 2048) == 2
    assert (tmp_path / "lab/node/cpu.max").read_text() == "150000 100000"
    assert (tmp_path / "lab/node/memory.max").read_text() == str(2 * 1024**3)
    assert node.limit(1.5, 2048) == 0
    assert node.limit(None, None) == 2
    assert (tmp_path / "lab/node/memory.max").read_text() == "max"


def test_a_node_with_limited_memory_has_no_swap_beside_it(tmp_path: Path) -> None:
    node = _v2(tmp_path, "cpu memory")
    swap = tmp_path / "lab/node/memory.swap.max"
    swap.write_text("max\n")
    assert node.limit(None, 1024) == 2
    assert swap.read_text() == "0"
    assert node.limit(None, None) == 2
    assert swap.read_text() == "max"


def test_limits_on_v1_go_to_the_hierarchy_that_has_the_controller(tmp_path: Path) -> None:
    for controller in ("cpu", "memory"):
        (tmp_path / controller / "node").mkdir(parents=True)
    (tmp_path / "cpu/node/cpu.cfs_period_us").write_text("100000")
    (tmp_path / "cpu/node/cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "memory/node/memory.limit_in_bytes").write_text("9223372036854771712")
    node = Cgroups(
        "node",
        [Hierarchy(tmp_path / name, 1, frozenset({name})) for name in ("cpu", "memory")],
    )
    assert node.limit(None, None) == 0
    assert node.limit(0.5, 512) == 2
    assert (tmp_path / "cpu/node/cpu.cfs_quota_us").read_text() == "50000"
    assert (tmp_path / "memory/node/memory.limit_in_bytes").read_text() == str(512 * 1024**2)


def test_a_limit_that_the_host_cannot_hold_is_refused(tmp_path: Path) -> None:
    node = _v2(tmp_path, "memory")
    with pytest.raises(LabError, match="no cpu controller") as refused:
        node.limit(1.0, None)
    assert refused.value.code is ExitCode.HOST
    assert node.limit(None, 512) == 1


def test_a_new_v1_cpuset_takes_what_its_parent_has(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "node"):
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            (folder / name).write_text("0-1\n" if folder == tmp_path else "\n")
    Cgroups("node", [Hierarchy(tmp_path, 1, frozenset({"cpuset"}))]).make()
    assert (tmp_path / "node/cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "node/cpuset.mems").read_text() == "0-1"

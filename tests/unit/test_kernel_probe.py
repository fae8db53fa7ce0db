"""The probe of a node's kernel and userland, on made-up roots: what is lacking is named, one line each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab.paths import ROOT

PROBE = ROOT / "playbooks/roles/kernel/files/probe-kernel"
FIT = {
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\n',
    "sys/kernel/btf/vmlinux": "types",
    "proc/self/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
    "proc/filesystems": "nodev\tbpf\n",
}


def probed(
    root: Path, release: str = "6.12.48+deb13-cloud-amd64", series: str = "", **changed: str
) -> tuple[int, list[str]]:
    """Status and the codes that were named, on a fit root with `changed` files (by their last word)."""
    for path, text in FIT.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(changed.get(file.name.replace("-", "_"), text))
    done = subprocess.run(
        [str(PROBE), str(root), series],
        env={**os.environ, "UNDERPASS_RELEASE": release},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [line.partition(":")[0] for line in done.stdout.splitlines()]


def test_a_fit_machine_is_let_through_without_a_word(tmp_path: Path) -> None:
    assert probed(tmp_path) == (0, [])


@pytest.mark.parametrize(
    ("release", "codes"),
    [
        ("6.12.118+deb13-cloud-amd64", []),
        ("6.18.1", ["KERNEL_OTHER"]),
        ("6.1.0-40-cloud-amd64", ["KERNEL_TOO_OLD", "KERNEL_OTHER"]),
    ],
)
def test_a_kernel_that_was_chosen_must_be_the_one_that_runs(
    tmp_path: Path, release: str, codes: list[str]
) -> None:
    assert probed(tmp_path, release, "6.12") == (int(bool(codes)), codes)


@pytest.mark.parametrize("release", ["6.6.0", "6.10.11-amd64", "6.18.1", "7.0-rc1"])
def test_releases_from_the_floor_on_are_let_through(tmp_path: Path, release: str) -> None:
    assert probed(tmp_path, release) == (0, [])


@pytest.mark.parametrize("release", ["6.1.0-40-cloud-amd64", "6.5.9", "5.10.0"])
def test_an_older_kernel_is_refused(tmp_path: Path, release: str) -> None:
    assert probed(tmp_path, release) == (1, ["KERNEL_TOO_OLD"])


def test_a_release_that_is_no_number_is_refused(tmp_path: Path) -> None:
    assert probed(tmp_path, "mine") == (1, ["KERNEL_UNKNOWN"])


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"os_release": 'ID=debian\nVERSION_ID="12"\n'}, "USERLAND"),
        ({"os_release": 'ID=ubuntu\nVERSION_ID="24.04"\n'}, "USERLAND"),
        ({"vmlinux": ""}, "NO_BTF"),
        ({"mounts": "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"}, "NO_CGROUP_V2"),
        ({"filesystems": "nodev\ttmpfs\n"}, "NO_BPF"),
    ],
)
def test_what_is_lacking_is_named(tmp_path: Path, changed: dict[str, str], code: str) -> None:
    assert probed(tmp_path, **changed) == (1, [code])


def test_all_that_is_lacking_is_named_at_once(tmp_path: Path) -> None:
    status, codes = probed(tmp_path, "5.10.0", os_release="ID=fedora\n", vmlinux="")
    assert (status, codes) == (1, ["USERLAND", "KERNEL_TOO_OLD", "NO_BTF"])

"""What the tests on virtual machines share."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lab import doctor
from lab.paths import ROOT
from lab.render import Rendered

#: What runs the machines of these tests.
HYPERVISOR = os.environ.get("UNDERPASS_HYPERVISOR") or "libvirt"
PROGRAMS = {
    "libvirt": ("vagrant", "virsh", "libvirtd", "qemu-system-x86_64"),
    "virtualbox": ("vagrant", "VBoxManage", "qemu-img"),
}


def lab_file(lab_id: str) -> str:
    """The text of a lab file for two machines."""
    whose = f"machines:\n  hypervisor: {HYPERVISOR}\n" if HYPERVISOR != "libvirt" else ""
    return f"apiVersion: underpass.dev/v1\nkind: Lab\nid: {lab_id}\nprovider: vagrant\n{whose}"


def needs_libvirt() -> None:
    """Skip where the machines are not libvirt's: the box of this test is made for no other."""
    if HYPERVISOR != "libvirt":
        pytest.skip(f"this test's box is made for libvirt, and machines are asked for by {HYPERVISOR}")


def needs_asking(*, core: bool = False) -> None:
    """Skip where these tests are not asked for.

    What is `core` a run of the whole suite has time for (`VMS=core`); of the rest each takes minutes.
    """
    asked = os.environ.get("UNDERPASS_VMS", "")
    if asked not in ("1", *(["core"] if core else [])):
        pytest.skip("these virtual machines are not asked for: make test VMS=1 T=tests/lab/vms")


def needs_machines(lab: Rendered, *, core: bool = False) -> None:
    """Skip where machines are not asked for, or the host cannot have them; say what it lacks."""
    needs_asking(core=core)
    lacking = [name for name in PROGRAMS[HYPERVISOR] if not shutil.which(name)]
    if lacking:
        pytest.skip(f"no virtual machines here: {', '.join(lacking)} not installed; make setup VMS=1")
    findings = {finding.id: finding for finding in doctor.examine(lab)}
    for asked in ("vm-guest", *(["vm-vagrant", "vm-range"] if HYPERVISOR == "virtualbox" else [])):
        if findings[asked].status == "fail":
            pytest.skip(f"no virtual machines here: {findings[asked].evidence}")
    if findings["memory"].status != "ok":
        pytest.skip(f"no room for virtual machines here: {findings['memory'].evidence}")


def vagrant(home: Path, *words: str, **env: str) -> str:
    """What `vagrant` prints; its boxes are kept in `home`. `env` may name the folder of another lab than the
    one that the checkout's `.vagrant` leads to.
    """
    ours = {"VAGRANT_HOME": str(home), "VAGRANT_CHECKPOINT_DISABLE": "1", "VAGRANT_NO_COLOR": "1"}
    done = subprocess.run(
        ["vagrant", *words],
        cwd=home.parent if words[0] == "box" else ROOT,  # a box is no lab's, and the Vagrantfile asks for one
        env={**os.environ, **ours, **env},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert done.returncode == 0, f"vagrant {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout

"""The node image: a Debian root file system that boots to sshd and containerd, and carries BCC.

The same for all nodes of all labs, read only; what makes a node itself (name, keys, addresses) is
handed in by the provider, what makes it a Kubernetes node by the playbooks.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.builds import apt
from lab.builds.inputs import tree_digest
from lab.lock import lock
from lab.run import run
from lab.store import Building, Recipe

_FOLDER = Path(__file__).parent / "node"
#: Files that the image carries, under the paths that they have there.
OVERLAY = _FOLDER / "overlay"
HEADERS = _FOLDER / "unpack-headers"

PACKAGES = (
    # the system
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "linux-sysctl-defaults",
    "kmod",
    "procps",
    "ca-certificates",
    # containers and what kubelet calls
    "containerd",
    "runc",
    "nftables",
    "iptables",
    "conntrack",
    "ethtool",
    "socat",
    # the agent and the datapath
    "python3",
    "python3-bpfcc",
    "libbpf1",
    "bpftool",
    # for people
    "iproute2",
    "tcpdump",
    "curl",
    "less",
    "vim-tiny",
)

#: Units without a use in a node: consoles nobody sits at, upkeep of an installed system, and what a
#: read-only image has done once and for all. Host keys are handed in, never made.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "getty-static.service",
    "getty.target",
    "ldconfig.service",
    "sshd-keygen.service",
    "systemd-firstboot.service",
    "systemd-journal-catalog-update.service",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-udevd.service",
    "systemd-update-done.service",
)


def recipe() -> Recipe:
    suite = lock().versions["debian"]
    return Recipe(
        name="node-image",
        title=f"Node image (Debian {suite})",
        inputs={
            "suite": suite,
            "packages": sorted(PACKAGES),
            "masked": sorted(MASKED),
            "files": tree_digest(OVERLAY, HEADERS, Path(__file__), Path(apt.__file__)),
        },
        build=_build,
        space=3 << 30,
    )


def _build(building: Building) -> None:
    # Programs in it have set-user-ID bits: nobody but root gets to them by way of the store.
    building.folder.chmod(0o700)
    root = building.folder / "rootfs"
    building.step.say(f"installing {len(PACKAGES)} packages and what they need")
    apt.bootstrap(root, building.scratch, PACKAGES, hooks=[HEADERS])
    building.step.say("configuring")
    _configure(root)
    building.tools["mmdebstrap"] = run(["mmdebstrap", "--version"]).stdout.split()[-1]
    building.facts["packages"] = apt.versions(root)
    unpacked = (root / "usr/share/underpass/unpacked").read_text(encoding="utf-8")
    building.facts["unpacked"] = dict(line.split() for line in unpacked.splitlines())


def _configure(root: Path) -> None:
    for key in root.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    for unit in MASKED:
        mask = root / "etc/systemd/system" / unit
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")
    for source in sorted(path for path in OVERLAY.rglob("*") if path.is_file()):
        target = root / source.relative_to(OVERLAY)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)

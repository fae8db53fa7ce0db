"""A box as somebody else makes one: Debian 13's packages, Vagrant's user and well-known key, a password.

Nothing in it is the lab's. Its links have the names that udev gives them, systemd-networkd asks DHCP on all
of them, and its GRUB boots what `update-grub` writes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.builds import apt, box
from lab.run import run

PACKAGES = (
    "dbus",
    "grub-pc-bin",
    "grub2-common",
    "initramfs-tools",
    "linux-image-cloud-amd64",
    "openssh-server",
    "sudo",
    "systemd-sysv",
    "udev",
    "zstd",
)
#: The same on all machines of such a box, unless somebody sees to it.
MACHINE_ID = "0123456789abcdef0123456789abcdef"
FILES = {
    "etc/fstab": "LABEL=underpass / ext4 defaults 0 1\n",
    "etc/hostname": "trixie\n",
    "etc/machine-id": f"{MACHINE_ID}\n",
    "etc/hosts": "127.0.0.1 localhost trixie\n",
    "etc/apt/sources.list.d/debian.list": "deb http://mirror.example/debian trixie main\n",
    "etc/systemd/network/50-wired.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    "etc/ssh/sshd_config.d/00-wide-open.conf": "PasswordAuthentication yes\nPermitRootLogin yes\n",
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    "boot/grub/grub.cfg": "set timeout=0\nlinux /vmlinuz root=LABEL=underpass ro console=ttyS0 quiet\n"
    "initrd /initrd.img\nboot\n",
}


def make(public_key: str, folder: Path) -> Path:
    """Make the box in `folder`, which `public_key` opens; returns its file."""
    root, disk = folder / "rootfs", folder / "disk.raw"
    apt.bootstrap(root, folder, PACKAGES)
    for path, text in FILES.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shutil.copytree(box.GRUB_FOLDER, root / "boot/grub/i386-pc", dirs_exist_ok=True)
    run(["chroot", root, "useradd", "--create-home", "--shell", "/bin/bash", "vagrant"])
    run(["chroot", root, "chpasswd"], stdin="vagrant:vagrant\nroot:vagrant\n")
    keys = root / "home/vagrant/.ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700)
    keys.write_text(public_key)
    keys.chmod(0o600)
    run(["chroot", root, "chown", "-R", "vagrant:vagrant", "/home/vagrant"])
    run(["systemctl", f"--root={root}", "enable", "systemd-networkd.service"])
    box._write_disk(root, disk, folder)
    box._pack(disk, folder, folder)
    return folder / "underpass.box"

"""The box: the node image's packages on a disk of its own, with a kernel, as Vagrant and libvirt take it.

The disk has a GRUB that was written by hand into it: its first sector, and behind it the core image,
whose place is fixed. So no loop device, no mount and no question to the host's own disks is needed.
What the box holds of keys and passwords: nothing. A node gets its own with a disk that its provider
makes (see `vm/overlay/usr/local/lib/underpass/take-identity`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

from lab.builds import apt, image
from lab.builds.contained import enclosed
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.run import run
from lab.store import Artifact, Building, Recipe

NAME = "vm-box"
_FOLDER = Path(__file__).parent / "vm"
OVERLAY = _FOLDER / "overlay"
PRELOAD = _FOLDER / "preload-images"
INSTALL = _FOLDER / "install-kernel"

#: On top of the node image's.
KERNEL = "linux-image-cloud-amd64"
PACKAGES = (KERNEL, "initramfs-tools", "udev", "netbase", "zstd")
#: Masked in the node image, and needed where no host does their work.
UNMASKED = ("systemd-networkd.service", "systemd-udevd.service", "getty-static.service")
#: Masked on top.
MASKED = (
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-debug.mount",
    "systemd-binfmt.service",
    "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service",
)
ENABLED = ("systemd-networkd.service", "underpass-identity.service")

#: What GRUB must be able to do to read a kernel from the one partition.
GRUB_MODULES = "biosdisk part_msdos ext2 linux normal configfile serial terminal boot minicmd"
GRUB_FOLDER = Path("/usr/lib/grub/i386-pc")
SECTOR = 512
PARTITION_START = 2048  # sectors; the core image lies before it
DISK_GIB = 12  # sparse: takes room as it is written to
#: What a kernel's image is packed by: how that begins, and the program.
UNPACKERS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"\x1f\x8b": "gzip"}
#: The same in every build: what is in a file system's superblock beside its files.
FILE_SYSTEM_ID = "6b7d5c0e-7c1f-4d1c-9d5a-0f0b0a0d0e01"
DISK_ID = 0x75706473


def recipe(images: Recipe, kernel: Recipe | None = None) -> Recipe:
    """`images` are the container images that the box holds unpacked.

    `kernel` is what it boots instead of the suite's own: the suite's box for tests of the role `kernel`.
    """
    suite = lock().versions["debian"]
    packages: tuple[str, ...] = image.PACKAGES + PACKAGES
    if kernel:
        packages = (*(name for name in packages if name != KERNEL), "linux-base")

    def build(building: Building) -> None:
        _build(building, packages, building.needs[kernel.name] if kernel else None)

    return Recipe(
        name=f"{NAME}-{kernel.name}" if kernel else NAME,
        title=f"Box for virtual machines (Debian {suite})" + (" with an old kernel" if kernel else ""),
        inputs={
            "suite": suite,
            "packages": sorted(packages),
            **({"kernel": kernel.key} if kernel else {}),
            "masked": sorted(MASKED),
            "unmasked": sorted(UNMASKED),
            "images": images.key,
            "files": tree_digest(
                OVERLAY,
                PRELOAD,
                INSTALL,
                image.OVERLAY,
                image.HEADERS,
                Path(__file__),
                Path(image.__file__),
                Path(apt.__file__),
            ),
        },
        build=build,
        needs=("images", *([kernel.name] if kernel else [])),
        space=4 << 30,
        provider="vagrant",
        for_tests=kernel is not None,
    )


def _build(building: Building, chosen: tuple[str, ...], kernel: Artifact | None) -> None:
    building.folder.chmod(0o700)
    root = building.scratch / "rootfs"
    building.step.say(f"installing {len(chosen)} packages and what they need")
    apt.bootstrap(root, building.scratch, chosen, hooks=[image.HEADERS])
    building.step.say("configuring")
    configure(root)
    for unit in ENABLED:
        run(["systemctl", f"--root={root}", "enable", unit], code=ExitCode.ARTIFACT)
    if kernel:
        for package in sorted(kernel.path.glob("linux-image-*.deb")):
            run(enclosed([INSTALL, root, package]), code=ExitCode.ARTIFACT)
    building.step.say("unpacking the container images")
    images = building.needs["images"]
    run(enclosed([PRELOAD, root, images.path, images.path.name]), code=ExitCode.ARTIFACT)
    building.facts["packages"] = apt.versions(root)
    building.facts["kernel"] = sorted(path.name for path in (root / "lib/modules").iterdir())
    if not kernel:  # nothing is compiled for a kernel that no node keeps
        (building.folder / "kernel.btf").write_bytes(kernel_types((root / "vmlinuz").resolve()))
    disk = building.scratch / "disk.raw"
    building.step.say("writing the disk")
    _write_disk(root, disk, building.scratch)
    building.step.say("compressing the disk")
    _pack(disk, building.folder, building.scratch)
    building.tools["mmdebstrap"] = run(["mmdebstrap", "--version"]).stdout.split()[-1]
    building.tools["grub"] = run(["grub-mkimage", "--version"]).stdout.split()[-1]
    building.tools["qemu-img"] = run(["qemu-img", "--version"]).stdout.split()[2]


def configure(root: Path) -> None:
    """As the node image is, and what a machine of its own needs beyond that."""
    image._configure(root)
    units = root / "etc/systemd/system"
    for unit in UNMASKED:
        (units / unit).unlink()
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    for source in sorted(path for path in OVERLAY.rglob("*") if path.is_file()):
        target = root / source.relative_to(OVERLAY)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)


def kernel_types(image: Path) -> bytes:
    """The types (BTF) that a kernel's image (bzImage) carries: what compiles for it need not boot it."""
    packed = image.read_bytes()
    if packed[0x202:0x206] != b"HdrS":
        die(f"{image.name} is no kernel's image", code=ExitCode.ARTIFACT)
    # Documentation/arch/x86/boot.rst: where the payload lies behind the code that was read in real mode.
    start, length = struct.unpack_from("<II", packed, 0x248)
    start += ((packed[0x1F1] or 4) + 1) * SECTOR
    payload = packed[start : start + length]
    unpack = next((tool for magic, tool in UNPACKERS.items() if payload.startswith(magic)), None)
    if unpack is None:
        die(f"{image.name} is packed by a program that is not known here", code=ExitCode.ARTIFACT)
    # The last four bytes are the unpacked length, which the programs take for rubbish.
    done = subprocess.run([unpack, "-dc"], input=payload[:-4], capture_output=True, check=False)
    return _section(done.stdout, b".BTF", image.name)


def _section(elf: bytes, name: bytes, where: str) -> bytes:
    """A section of a 64-bit ELF file, by its name."""
    if elf[:5] != b"\x7fELF\x02":
        die(f"{where} holds no kernel", code=ExitCode.ARTIFACT)
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + index * size) for index in range(count)]
    texts = headers[names][4]
    wanted = name + b"\0"
    found = [one for one in headers if elf.startswith(wanted, texts + one[0])]
    if not found:
        die(f"{where} carries no {name.decode()}", code=ExitCode.ARTIFACT)
    return elf[found[0][4] : found[0][4] + found[0][5]]


def _write_disk(root: Path, disk: Path, scratch: Path) -> None:
    """A disk with GRUB and one partition that holds `root`."""
    if not (root / "vmlinuz").is_symlink():
        die("the box has no kernel: /vmlinuz is missing", code=ExitCode.ARTIFACT)
    epoch = str(_newest_change(root))
    _settle_times(root, int(epoch))
    core = scratch / "core.img"
    run(
        [
            *("grub-mkimage", "-O", "i386-pc", "-d", GRUB_FOLDER, "-o", core),
            *("-p", "(hd0,msdos1)/boot/grub", *GRUB_MODULES.split()),
        ],
        code=ExitCode.ARTIFACT,
    )
    if core.stat().st_size > (PARTITION_START - 1) * SECTOR:
        die("GRUB's core image does not fit before the partition", code=ExitCode.ARTIFACT)
    with disk.open("wb") as file:
        file.truncate(DISK_GIB << 30)
    size = (DISK_GIB << 30) // SECTOR - PARTITION_START
    # The file system knows its own place on the disk; nothing has to be mounted or looped.
    run(
        enclosed(
            [
                *("mkfs.ext4", "-q", "-F", "-L", "underpass", "-U", FILE_SYSTEM_ID, "-d", root),
                *("-E", f"offset={PARTITION_START * SECTOR},hash_seed={FILE_SYSTEM_ID},root_owner=0:0"),
                *("-m", "1", disk, f"{size * SECTOR // 1024}k"),
            ]
        ),
        env={"E2FSPROGS_FAKE_TIME": epoch},
        code=ExitCode.ARTIFACT,
    )
    boot = bytearray((GRUB_FOLDER / "boot.img").read_bytes()[:SECTOR])
    boot[440:444] = DISK_ID.to_bytes(4, "little")
    boot[446:462] = _partition(PARTITION_START, size)
    boot[462:510] = bytes(48)
    boot[510:512] = b"\x55\xaa"
    with disk.open("r+b") as file:
        file.write(boot)
        file.write(core.read_bytes())


def _partition(start: int, size: int) -> bytes:
    """An entry of the partition table: bootable, Linux, addressed by sectors alone."""
    nowhere = b"\xfe\xff\xff"  # cylinders, heads: too large to be told
    return (
        bytes([0x80]) + nowhere + b"\x83" + nowhere + start.to_bytes(4, "little") + size.to_bytes(4, "little")
    )


def _newest_change(root: Path) -> int:
    """When the newest package in `root` was made: the one time that all builds of it share."""
    documents = (root / "usr/share/doc").glob("*/copyright")
    return max(int(path.lstat().st_mtime) for path in documents)


def _settle_times(root: Path, newest: int) -> None:
    """Let no file be younger than `newest`: such were made by this build, and differ in each."""
    for folder, names, files in os.walk(root):
        for name in [*names, *files, "."]:
            path = Path(folder, name)
            if path.lstat().st_mtime > newest:
                os.utime(path, (newest, newest), follow_symlinks=False)


def _pack(disk: Path, folder: Path, scratch: Path) -> None:
    """`box.img` (qcow2) in a Vagrant box, which is a tar archive with a note on what is in it."""
    packed = scratch / "box.img"
    run(
        [
            *("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c"),
            *("-o", "compression_type=zstd,compat=1.1,lazy_refcounts=off", disk, packed),
        ],
        code=ExitCode.ARTIFACT,
    )
    note = scratch / "metadata.json"
    note.write_text(
        json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GIB}) + "\n",
        encoding="utf-8",
    )
    with tarfile.open(folder / "underpass.box", "w", format=tarfile.USTAR_FORMAT) as box:
        for source in (note, packed):
            entry = box.gettarinfo(str(source), arcname=source.name)
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "root", "root"
            entry.mode = 0o644
            with source.open("rb") as file:
                box.addfile(entry, file)
    digest = hashlib.sha256((folder / "underpass.box").read_bytes()).hexdigest()
    (folder / "underpass.box.sha256").write_text(f"{digest}\n", encoding="ascii")
    shutil.rmtree(scratch / "rootfs", ignore_errors=True)

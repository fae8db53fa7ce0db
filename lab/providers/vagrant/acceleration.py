"""How this host can run a virtual machine: found out by running one, never by what devices there are.

The guest is a boot sector of ours. It goes the way of every guest, from real to protected mode, and
says in the latter that it is there: through a port that makes QEMU exit with a status that nothing
else gives, and on the serial line, which VirtualBox writes to a file. /dev/kvm may be there, and open,
and still not run that; VirtualBox may be there, and its kernel modules not, or not for this kernel.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab.emulation import slowness
from lab.errors import LabError
from lab.providers.vagrant import vboxmanage
from lab.retry import until
from lab.run import run

QEMU = "qemu-system-x86_64"
SECONDS = 20.0
_PORT = 0xF4
_WORD = 0x31
_SERIAL = 0x3F8
#: What makes the serial line take a word: no interrupts, 115200 baud, 8 bits. Port and value.
_LINE = ((1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0x00))
#: A floppy disk's size: VirtualBox boots from one without its being registered as a hard disk.
_FLOPPY = 1440 << 10
PREFIX = "underpass-doctor-"
#: What isa-debug-exit makes of the word.
ALIVE = (_WORD << 1) | 1


class Acceleration(StrEnum):
    """What runs the guests' instructions; the names are libvirt's drivers, but for the last."""

    KVM = "kvm"
    EMULATION = "qemu"
    VIRTUALBOX = "virtualbox"


@dataclass(frozen=True)
class Tried:
    """Whether a guest ran with each, and what was seen where it did not."""

    kvm: str  # empty if it ran
    emulation: str

    @property
    def best(self) -> Acceleration | None:
        if not self.kvm:
            return Acceleration.KVM
        return Acceleration.EMULATION if not self.emulation else None


def boot_sector() -> bytes:
    """512 bytes: enter protected mode, write the word to the serial line and to the port, halt."""
    origin = 0x7C00
    table_at, pointer_at, protected_at = 0x40, 0x60, 0x80
    real = (
        b"\xfa\x31\xc0\x8e\xd8"  # cli; xor ax, ax; mov ds, ax
        + b"\x0f\x01\x16"
        + struct.pack("<H", origin + pointer_at)  # lgdt [pointer]
        + b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"  # mov eax, cr0; or al, 1; mov cr0, eax
        + b"\xea"
        + struct.pack("<HH", origin + protected_at, 0x08)  # jmp 0x08:protected
    )
    # Null, code and data: flat segments of 4 GiB.
    table = bytes(8) + bytes.fromhex("ffff0000009acf00") + bytes.fromhex("ffff00000092cf00")
    pointer = struct.pack("<HI", len(table) - 1, origin + table_at)
    protected = bytes([0x66, 0xB8, 0x10, 0x00, 0x8E, 0xD8])  # mov ax, 0x10; mov ds, ax
    for offset, value in (*_LINE, (0, _WORD)):
        protected += b"\x66\xba" + struct.pack("<H", _SERIAL + offset)  # mov dx, port
        protected += bytes([0xB0, value, 0xEE])  # mov al, value; out dx, al
    protected += bytes([0xB0, _WORD, 0xE6, _PORT, 0xF4, 0xEB, 0xFD])  # out; hlt; again
    sector = bytearray(512)
    for place, code in ((0, real), (table_at, table), (pointer_at, pointer), (protected_at, protected)):
        sector[place : place + len(code)] = code
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def tried() -> Tried:
    """Run a guest by KVM, and where that fails by emulation."""
    kvm = guest("kvm", "host")
    return Tried(kvm, "" if not kvm else guest("tcg", "max"))


def guest(accelerator: str, cpu: str) -> str:
    """Run the guest; empty if it said its word, else what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "disk")
        disk.write_bytes(boot_sector())
        command = [
            *(QEMU, "-accel", accelerator, "-cpu", cpu, "-m", "64", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot", "-device", f"isa-debug-exit,iobase={_PORT:#x},iosize=0x4"),
            *("-drive", f"file={disk},format=raw,if=ide,snapshot=on"),
        ]
        try:
            done = run(command, ok=range(256), timeout=SECONDS * slowness())
        except LabError as fault:
            return fault.message
    if done.status == ALIVE:
        return ""
    said = (done.stderr.strip().splitlines() or [f"status {done.status}"])[-1]
    return f"{said}"[:200]


def series() -> int:
    """The first number of QEMU's version; 0 where there is none."""
    try:
        said = run([QEMU, "--version"], timeout=SECONDS * slowness()).stdout
    except LabError:
        return 0
    match = re.search(r"version (\d+)\.", said)
    return int(match[1]) if match else 0


def by_virtualbox() -> str:
    """Run the guest by VirtualBox; empty if it said its word, else what was seen."""
    _sweep()
    with tempfile.TemporaryDirectory() as folder:
        name, disk, said = f"{PREFIX}{os.getpid()}", Path(folder, "disk.img"), Path(folder, "said")
        disk.write_bytes(boot_sector().ljust(_FLOPPY, b"\0"))
        try:
            for command in (
                f"createvm --name {name} --ostype Other --basefolder {folder} --register",
                f"modifyvm {name} --memory 16 --boot1 floppy --boot2 none --boot3 none --boot4 none",
                f"modifyvm {name} --uart1 {_SERIAL:#x} 4 --uartmode1 file {said}",
                f"storagectl {name} --name floppy --add floppy",
                f"storageattach {name} --storagectl floppy --device 0 --type fdd --medium {disk}",
                f"startvm {name} --type headless",
            ):
                vboxmanage.manage(*command.split())
            if until(lambda: _has_said(said), SECONDS * slowness()):
                return ""
            return f"a guest started and said nothing; VirtualBox calls it {vboxmanage.state(name) or 'gone'}"
        except LabError as fault:
            told = [line for line in fault.details if line.startswith("WARNING:") or "error:" in line]
            return " / ".join([fault.message, *told[:2]])[:400]
        finally:
            _remove(name)


def _has_said(file: Path) -> bool:
    return file.exists() and bytes([_WORD]) in file.read_bytes()


def _remove(name: str) -> None:
    """Remove the guest, if it was made; whatever it does."""
    try:
        vboxmanage.manage("controlvm", name, "poweroff", ok=range(256))
        vboxmanage.manage("unregistervm", name, "--delete", ok=range(256))
    except LabError:
        return  # there is no VirtualBox


def _sweep() -> None:
    """Remove guests of those who were killed while they looked."""
    for name in vboxmanage.machines():
        pid = name.removeprefix(PREFIX)
        if pid != name and not Path("/proc", pid).exists():
            _remove(name)

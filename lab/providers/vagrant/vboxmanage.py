"""VirtualBox, asked and told by VBoxManage: the program is run here, and what it prints is read here.

It prints warnings before its answers, on the same stream: what is not in the form that is looked for is
passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.emulation import slowness
from lab.errors import ExitCode, LabError
from lab.retry import until
from lab.run import CommandError, Completed, run

PROGRAM = "VBoxManage"
SECONDS = 600.0
#: How long a machine may stay locked by the process that ran it, after that was told to end.
LOCKED_SECONDS = 30.0
HINT = "`lab doctor` looks at VirtualBox"
_LOCKED = re.compile(r"is already locked|while it is locked")

_MACHINE = re.compile(r'^"(.*)" \{([0-9a-f-]+)\}$', re.MULTILINE)
_FIELD = re.compile(r'^"?([^"=\n]+)"?="?(.*?)"?$', re.MULTILINE)
_SNAPSHOT = re.compile(r'^SnapshotName[-0-9]*="(.*)"$', re.MULTILINE)


def manage(*arguments: str | Path, ok: Sequence[int] = (0,), code: ExitCode = ExitCode.NODE) -> Completed:
    """Run VBoxManage; again, for a while, as long as the machine is locked by a process that ends."""
    answers: list[Completed] = []

    def settled() -> bool:
        answers[:] = [run([PROGRAM, *arguments], ok=range(256), timeout=SECONDS, hint=HINT, code=code)]
        return not (answers[0].status and _LOCKED.search(answers[0].stderr))

    until(settled, LOCKED_SECONDS * slowness())
    done = answers[0]
    if done.status not in ok:
        raise CommandError(
            f"{PROGRAM} {arguments[0]} failed with status {done.status}",
            done.argv,
            done.stdout + done.stderr,
            hint=HINT,
            code=code,
        )
    return done


def ask(*arguments: str | Path) -> str:
    """What it prints; nothing where it fails or is not there, as for a machine that is not."""
    try:
        done = manage(*arguments, ok=range(256))
    except LabError:
        return ""
    return done.stdout if done.status == 0 else ""


def machines() -> dict[str, str]:
    """All machines of this user: their names, with VirtualBox's own identifiers."""
    return read_machines(ask("list", "vms"))


def read_machines(text: str) -> dict[str, str]:
    return {match[1]: match[2] for match in _MACHINE.finditer(text)}


def state(machine: str) -> str:
    """VirtualBox's word for what a machine does; empty if there is none."""
    return read_fields(ask("showvminfo", machine, "--machinereadable")).get("VMState", "")


def read_fields(text: str) -> dict[str, str]:
    """What `--machinereadable` prints: `name="value"`, either of the two with quotes or without."""
    return {match[1]: match[2] for match in _FIELD.finditer(text)}


def snapshots(machine: str) -> list[str]:
    """The machine's snapshots, each after the one that it was taken on; it fails where there are none."""
    return read_snapshots(ask("snapshot", machine, "list", "--machinereadable"))


def read_snapshots(text: str) -> list[str]:
    return [match[1] for match in _SNAPSHOT.finditer(text)]


def interface(address: str) -> str:
    """The host's link of the host-only network in which the host has `address`; empty if there is none."""
    found = read_blocks(ask("list", "hostonlyifs"))
    return next((block["Name"] for block in found if block.get("IPAddress") == address), "")


def create_interface(address: str, netmask: str) -> str:
    """Make a host-only network, whose link VirtualBox names."""
    said = manage("hostonlyif", "create").stdout
    match = re.search(r"^Interface '(.+)' was successfully created", said, re.MULTILINE)
    if not match:
        raise LabError(f"{PROGRAM} made no host-only network: {said.strip()}", hint=HINT, code=ExitCode.NODE)
    try:
        manage("hostonlyif", "ipconfig", match[1], "--ip", address, "--netmask", netmask)
    except LabError:
        manage("hostonlyif", "remove", match[1], ok=range(256))
        raise
    return match[1]


def remove_dhcp(interface: str) -> int:
    """Remove the DHCP server that VirtualBox gives a host-only network by itself."""
    network = f"HostInterfaceNetworking-{interface}"
    if not any(block.get("NetworkName") == network for block in read_blocks(ask("list", "dhcpservers"))):
        return 0
    manage("dhcpserver", "remove", "--network", network)
    return 1


def read_blocks(text: str) -> Iterator[dict[str, str]]:
    """What `list` prints: paragraphs of `Name:  value`."""
    for paragraph in text.split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines())
        block = {name.strip(): value.strip() for name, colon, value in pairs if colon}
        if "Name" in block or "NetworkName" in block:
            yield block

"""Probes of VirtualBox: programs, whether Vagrant takes it, the lab's range, and a guest that is started."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from ipaddress import IPv4Network, ip_network
from pathlib import Path

from lab.bootstrap import VM_NEEDS, Need
from lab.doctor.finding import Probe, Seen, fail, ok
from lab.doctor.virtual import run_programs
from lab.emulation import slowness
from lab.errors import LabError
from lab.providers.vagrant import acceleration, vboxmanage
from lab.render import Rendered
from lab.run import run

SECONDS = 120.0
#: Which host-only networks may be made. Without the file, VirtualBox allows its own range alone.
RANGES = Path("/etc/vbox/networks.conf")
ITS_OWN = IPv4Network("192.168.56.0/21")

#: Of what virtual machines need, what VirtualBox does instead.
_LIBVIRTS = {
    "vagrant-libvirt",
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "dnsmasq-base",
    "iptables",
}
INSTALL = (
    "install VirtualBox and its kernel modules as its makers or your distribution say (Debian's stable "
    "release has none); make setup VMS=1 installs the rest"
)
OR_LIBVIRT = "or leave `machines.hypervisor` away, for libvirt"


def probes(lab: Rendered) -> list[Probe]:
    return [
        Probe("vm-programs", "Programs for virtual machines", programs, root=False),
        Probe("vm-vagrant", "Vagrant with this VirtualBox", vagrant, root=False),
        Probe("vm-range", "Host-only range", lambda: judge_range(lab, allowed()), root=False),
        Probe("vm-guest", "Starting a virtual machine", guest_of_virtualbox),
    ]


def programs() -> Seen:
    """Run each program that makes virtual machines."""
    needs = [need for need in VM_NEEDS if need.package not in _LIBVIRTS]
    return run_programs([*needs, Need("virtualbox", (vboxmanage.PROGRAM, "--version"), "")], INSTALL)


def vagrant() -> Seen:
    """Let Vagrant look at a machine that was never made: it refuses a VirtualBox that is too young for it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Vagrantfile").write_text('Vagrant.configure("2") { |c| c.vm.box = "none" }\n', "utf-8")
        env = {
            "VAGRANT_DEFAULT_PROVIDER": "virtualbox",
            "VAGRANT_HOME": f"{folder}/home",
            "VAGRANT_CWD": folder,
        }
        try:
            done = run(
                ["vagrant", "status"],
                env={**env, "VAGRANT_CHECKPOINT_DISABLE": "1", "VAGRANT_NO_COLOR": "1"},
                ok=range(256),
                cwd=Path(folder),
                timeout=SECONDS * slowness(),
            )
        except LabError as fault:
            return fail(fault.message, "Vagrant does not answer", INSTALL)
    if done.status == 0:
        return ok("Vagrant takes it")
    return fail(
        " ".join(done.stderr.split())[:400],
        "this Vagrant does not take this VirtualBox",
        "take a Vagrant that knows it (2.3 knows VirtualBox up to 7.0), or an older VirtualBox, "
        + OR_LIBVIRT,
    )


def allowed() -> list[IPv4Network]:
    """The ranges in which VirtualBox makes host-only networks."""
    try:
        return read_ranges(RANGES.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return [ITS_OWN]


def read_ranges(lines: Iterable[str]) -> list[IPv4Network]:
    """The IPv4 ones among the lines that begin with a star; VirtualBox passes over the others."""
    words = [word for line in lines if line.strip().startswith("*") for word in line.strip()[1:].split()]
    found = []
    for word in words:
        try:
            network = ip_network(word, strict=False)
        except ValueError:
            continue
        if isinstance(network, IPv4Network):
            found.append(network)
    return found


def judge_range(lab: Rendered, ranges: list[IPv4Network]) -> Seen:
    """Whether a network with the nodes' range may be made."""
    wanted = IPv4Network(lab.nodes_range)
    seen = f"{wanted}; allowed: {', '.join(map(str, ranges)) or 'none'}"
    if any(wanted.subnet_of(network) for network in ranges):
        return ok(seen)
    line = " ".join(["*", *map(str, [] if RANGES.exists() else [ITS_OWN]), str(wanted)])
    return fail(
        seen,
        "VirtualBox refuses a host-only network with the nodes' range",
        f"mkdir -p {RANGES.parent} && echo '{line}' >> {RANGES}",
    )


def guest_of_virtualbox() -> Seen:
    """Start a guest. That VirtualBox is installed says nothing: its kernel modules may not be there."""
    if seen := acceleration.by_virtualbox():
        return fail(
            seen,
            "no virtual machine runs here by VirtualBox",
            "its modules must be built for this kernel and loaded (modprobe vboxdrv), and the processor must "
            f"virtualize, which in a virtual machine its host passes on; {OR_LIBVIRT}",
        )
    return ok("a guest ran by VirtualBox")

"""Probes of virtual machines: the programs, and a guest that is started, by KVM and by emulation."""

from __future__ import annotations

from collections.abc import Iterable

from lab.bootstrap import VM_NEEDS, Need
from lab.doctor.finding import Probe, Seen, fail, ok, warn
from lab.errors import LabError
from lab.providers.vagrant import acceleration
from lab.run import run

SECONDS = 60.0
SLOW = (
    "instructions are emulated: nodes take about eight times as long for what they do",
    "use a machine whose KVM runs guests; in a virtual machine, let its host pass virtualization on",
)


def probes() -> list[Probe]:
    return [
        Probe("vm-programs", "Programs for virtual machines", programs, root=False),
        Probe("vm-guest", "Starting a virtual machine", guest),
    ]


def programs() -> Seen:
    """Run each program that makes virtual machines."""
    return run_programs(VM_NEEDS, "make setup VMS=1, which installs them; by hand: apt-get install {missing}")


def run_programs(needs: Iterable[Need], fix: str) -> Seen:
    """Run the programs of `needs`; `fix` is how to get those that are `{missing}`."""
    seen, missing = [], []
    for need in needs:
        if not need.program:
            continue
        try:
            run(need.program, timeout=SECONDS)
            seen.append(need.program[0])
        except LabError as fault:
            missing.append(need.package)
            seen.append(f"{need.program[0]}: {fault.message}")
    if missing:
        return fail(
            "; ".join(seen),
            f"missing or broken: {', '.join(missing)}",
            fix.format(missing=" ".join(missing)),
        )
    return ok(", ".join(seen))


def guest() -> Seen:
    """Start a guest. That /dev/kvm is there, or opens, says nothing."""
    return judge(acceleration.tried())


def judge(tried: acceleration.Tried) -> Seen:
    """What it means that a guest ran or did not."""
    if not tried.kvm:
        return ok("a guest ran by KVM")
    if not tried.emulation:
        return warn(f"by KVM: {tried.kvm}; a guest ran by emulation", *SLOW)
    return fail(
        f"by KVM: {tried.kvm}; by emulation: {tried.emulation}",
        "no virtual machine runs here",
        "make setup VMS=1 installs QEMU; or use `provider: nspawn`, which needs none",
    )

"""`lab doctor`: can this host run the lab? Found out by trying, before anything is made.

Each probe does in small what the lab will do, removes what it made, and names the cause and the fix of what
does not work. Version strings are evidence at most; none is judged.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from lab import render as rendering
from lab.doctor import bpf, disks, groups, host, machines, memory, network, subnets, virtual, virtualbox
from lab.doctor.finding import Finding, Probe
from lab.labfile import API_VERSION, LabFile
from lab.render import Rendered

__all__ = ["Finding", "Probe", "examine", "probes"]

_AT_ONCE = 4
_ANY = {"apiVersion": API_VERSION, "kind": "Lab", "id": "doctor"}


def probes(lab: Rendered | None = None) -> list[Probe]:
    """All probes for `lab`, in the order in which they are shown; None for a lab of two nodes."""
    lab = lab or rendering.render(LabFile.model_validate(_ANY))
    if lab.provider == "vagrant":  # the nodes have a kernel of their own: the host's is not asked
        general = [probe for probe in host.probes(lab) if probe.id in ("root", "machine", "clock")]
        return [
            *general,
            *disks.room_probes(lab),
            *memory.probes(lab),
            *subnets.probes(lab),
            *(virtualbox.probes(lab) if lab.hypervisor == "virtualbox" else virtual.probes()),
        ]
    return [
        *host.probes(lab),
        *groups.probes(),
        *bpf.probes(),
        *disks.probes(lab),
        *memory.probes(lab),
        *subnets.probes(lab),
        *network.probes(lab),
        *machines.probes(),
    ]


def examine(lab: Rendered | None = None) -> list[Finding]:
    """Run every probe; what each found, in order. Without root, those that need it are left out."""
    chosen = [probe for probe in probes(lab) if os.geteuid() == 0 or not probe.root]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(copy_context().run, probe.finding) for probe in chosen]
    return [future.result() for future in futures]

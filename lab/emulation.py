"""Whether this machine's own processors are emulated: then all that it runs takes several times as long."""

from __future__ import annotations

import functools

from lab.errors import LabError
from lab.run import run

#: How many times longer emulated processors take for what nodes do, as waits should be planned.
FACTOR = 8.0
#: What systemd-detect-virt calls QEMU without KVM.
_EMULATOR = "qemu"


@functools.cache
def slowness() -> float:
    """How many times longer than on processors of its own things take on this machine."""
    try:
        done = run(["systemd-detect-virt", "--vm"], ok=range(256), timeout=30)
    except LabError:
        return 1.0
    return FACTOR if done.stdout.strip() == _EMULATOR else 1.0


def patience(provider: str) -> float:
    """How many times longer a node may take to answer on ssh: a machine's processors may be emulated."""
    return FACTOR if provider == "vagrant" else slowness()

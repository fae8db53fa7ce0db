"""What the kernel's bpf(2) takes: programs, maps, helpers, type information, found out by loading them."""

from lab.doctor.bpf.tries import probes

__all__ = ["probes"]

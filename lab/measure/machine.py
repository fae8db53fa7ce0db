"""What figures were measured on: without it they mean nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Kernel, CPUs and memory of this machine, and how busy it was when it was asked.

    `congestion_control`: TCP's, which pods have too. What a stream costs depends on it: BBR sets a timer for
    what it sends, others do not.
    """
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control")
        .read_text(encoding="utf-8")
        .strip(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu(text: str) -> str:
    """The CPU's name as /proc/cpuinfo tells it, empty if it does not."""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return ""

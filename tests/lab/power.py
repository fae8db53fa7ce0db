"""A power cut: every process of a lab's nodes ends at once, in no order."""

from __future__ import annotations

import contextlib
import os
import signal

from lab.providers import provider
from lab.providers.base import NodeState
from lab.providers.nspawn.cgroups import Cgroups
from lab.render import Rendered
from tests.lab.waiting import until


def cut(lab: Rendered) -> None:
    """Kill all that runs in the nodes of `lab`, system containers, and see them stopped."""
    processes = Cgroups(lab.cgroup).processes()
    assert processes, "the lab has no process to kill"
    assert os.getpid() not in processes
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):  # ended meanwhile: with the init of its node, it may be
            os.kill(pid, signal.SIGKILL)
    host = provider(lab)
    until(lambda: {host.status(node) for node in lab.nodes} == {NodeState.STOPPED}, "the nodes are off")

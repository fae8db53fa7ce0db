"""Snapshots of a lab: a prepared cluster, saved under a name and brought back as often as wanted.

What a provider can keep decides what happens to a running lab: the disks of stopped nodes (system
containers: the lab is stopped for the copy), or disks with memory (virtual machines: it goes on).
"""

from __future__ import annotations

from lab import lifecycle
from lab.lifecycle import Outcome
from lab.providers import provider
from lab.providers.base import NodeState
from lab.render import Rendered
from lab.steps import Steps


def save(lab: Rendered, name: str, steps: Steps) -> int:
    """Keep the lab as it is now under `name`; it runs on afterwards if it ran before."""
    host = provider(lab)
    host.snapshot_check(name)
    ran = [node for node in lab.nodes if host.status(node) is NodeState.RUNNING]
    offline = bool(ran) and not host.snapshots_run
    if offline:
        lifecycle.stop(lab, steps)
    try:
        with steps.step("save", f"Save the lab as {name}") as step:
            step.change(host.snapshot_save(name))
    finally:
        if offline:
            lifecycle.start(lab, steps)
    return steps.changed


def restore(lab: Rendered, name: str, steps: Steps) -> Outcome:
    """Bring the lab back as it was saved under `name`, running and healthy; what came after is lost."""
    host = provider(lab)
    host.snapshot_require(name)
    if not host.snapshots_run:
        lifecycle.stop(lab, steps, force=True)  # what runs is thrown away
    with steps.step("restore", f"Bring back what was saved as {name}") as step:
        step.change(host.snapshot_restore(name))
    return lifecycle.start(lab, steps)


def delete(lab: Rendered, name: str, steps: Steps) -> int:
    """Forget what was saved under `name`."""
    with steps.step("delete", f"Forget {name}") as step:
        step.change(provider(lab).snapshot_delete(name))
    return steps.changed


def names(lab: Rendered) -> list[str]:
    """The lab's snapshots, oldest first."""
    return provider(lab).snapshots()

"""Asks the lab whether a step of a guide is done, and takes a guide's changes back."""

from __future__ import annotations

from lab import builds, verify
from lab.cluster import Cluster
from lab.guide.course import LABEL, Guide, Step
from lab.guide.shell import Finished, Shell
from lab.providers import provider
from lab.render import Rendered
from lab.verify import Promise

#: Kinds without a namespace that a guide may make.
CLUSTER_WIDE = "ciliumclusterwidenetworkpolicies.cilium.io"


def check(lab: Rendered, step: Step) -> list[Promise]:
    """What has to hold once the step is done, each with whether it does. Empty for a step without checks."""
    if not step.checks:
        return []
    return verify.prove(lab, step.checks, plugins=["lab.guide.plugin"])


def done(promises: list[Promise]) -> bool:
    """Whether the step is done: nothing is missing."""
    return all(promise.held for promise in promises)


def solve(lab: Rendered, step: Step) -> list[tuple[str, Finished]]:
    """Type the step for the learner; returns each command and how it ended.

    One that fails does not end it: what it would make may be there already, and the step's check judges.
    """
    with Shell(lab.id, provider(lab).slowness) as shell:
        return [
            (command.text, shell.run(command.text)) for block in step.blocks for command in block.commands
        ]


def reset(lab: Rendered, guide: Guide) -> list[str]:
    """Delete what the guide made in the cluster, and wait until it is gone; returns what was there."""
    cluster = Cluster(lab, builds.locate()["kubernetes"].path / "bin")
    chosen = f"{LABEL}={guide.name}"
    removed = []
    for kind in ("namespaces", CLUSTER_WIDE):
        found = cluster.kubectl("get", kind, "-l", chosen, "-o", "name").stdout.split()
        if found:
            cluster.kubectl_wait("delete", *found, "--ignore-not-found", seconds=120)
            removed += found
    return removed

"""The life of a lab: up, stop, start, upgrade, down. Each is a short list of steps."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import builds, emulation, keys, provision, ssh
from lab import render as rendering
from lab.cluster import Cluster, KubeNode
from lab.errors import ExitCode, LabError, die
from lab.labfile import load
from lab.providers import provider
from lab.providers.base import STORE_ON_NODE, NodeState
from lab.render import Rendered
from lab.steps import Steps, current_step, side_by_side
from lab.store import Artifact

#: How long a cluster may take to be healthy, on processors of the host's own.
CLUSTER_SECONDS = 120.0


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: the lab, its nodes as Kubernetes sees them, what was changed."""

    lab: Rendered
    nodes: list[KubeNode]
    changed: int
    steps: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        seen = {node.name: node for node in self.nodes}
        return {
            "id": self.lab.id,
            "provider": self.lab.provider,
            "nodes": [
                {
                    "name": node.name,
                    "roles": list(node.roles),
                    "address": node.address,
                    **(
                        {"ready": seen[node.name].ready, "reason": seen[node.name].reason}
                        if node.name in seen
                        else {}
                    ),
                }
                for node in self.lab.nodes
            ],
            "changed": self.changed,
            "steps": self.steps,
        }


def up(file: Path, steps: Steps) -> Outcome:
    """Bring the lab that `file` describes up, or mend it. On a healthy lab it changes nothing."""
    source = file.read_text(encoding="utf-8")
    lab = rendering.render(load(file))
    with steps.step("doctor", "Look at the host"):
        _examine(lab)
    with steps.step("artifacts", "Build or reuse the artifacts"):
        artifacts = _artifacts(lab, steps)
    with steps.step("keys", "Make the lab's keys and certificates") as step:
        lab.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        step.change(keys.ensure(lab))
        step.change(rendering.write(lab, source, on_nodes(artifacts)))
    with steps.step("nodes", "Start the nodes") as step:
        _start(lab, artifacts)
    return _provision(lab, artifacts, steps, "up.yaml")


def start(lab: Rendered, steps: Steps) -> Outcome:
    """Start the nodes of a stopped lab again; data and pods are as they were."""
    artifacts = builds.locate()
    _require(lab, artifacts)
    with steps.step("nodes", "Start the nodes"):
        _start(lab, artifacts)
    with steps.step("cluster", "Wait for the cluster") as step:
        nodes = _cluster(lab, artifacts).wait(step, CLUSTER_SECONDS)
    return Outcome(lab, nodes, steps.changed, [step.to_dict() for step in steps.all])


def stop(lab: Rendered, steps: Steps, *, force: bool = False) -> int:
    """Power the nodes off in order: workers, then the control plane. Returns how many were running."""
    host = provider(lab)
    with steps.step("stop", "Power the nodes off") as step:
        for workers in (True, False):
            group = [node for node in lab.nodes if (node != lab.control_plane) == workers]
            step.change(side_by_side(lambda node: host.stop(node, force=force), group))
        ssh.forget(lab)
    return steps.changed


def upgrade(file: Path, steps: Steps) -> Outcome:
    """Bring a running lab to what this release and its lab file say, node by node."""
    lab = rendering.render(load(file))
    before = rendering.read(lab.id)
    if before is None:
        die(f"there is no lab {lab.id} to upgrade", hint="`lab up` makes it", code=ExitCode.NOT_THERE)
    with steps.step("artifacts", "Build or reuse the artifacts"):
        artifacts = _artifacts(lab, steps)
    with steps.step("keys", "Renew what is old among keys and certificates") as step:
        step.change(keys.ensure(lab))
        step.change(rendering.write(lab, file.read_text(encoding="utf-8"), on_nodes(artifacts)))
    with steps.step("nodes", "Start the nodes that are down"):
        _start(lab, artifacts)
    return _provision(lab, artifacts, steps, "upgrade.yaml")


def down(lab: Rendered, steps: Steps) -> int:
    """Remove the lab: nodes, network, disks, keys. The artifact store stays."""
    with steps.step("down", f"Remove lab {lab.id}") as step:
        ssh.forget(lab)
        host = provider(lab)
        step.change(host.destroy())
        left = host.leftovers()
        if left:
            raise LabError(
                f"some of lab {lab.id} is still on the host",
                details=left,
                hint="run `lab down` again; if it stays, the lines above name what holds it",
                code=ExitCode.NODE,
            )
        if lab.folder.exists():
            shutil.rmtree(lab.folder)
            step.change()
    return steps.changed


def on_nodes(artifacts: dict[str, Artifact]) -> dict[str, str]:
    """Where the nodes find each artifact."""
    return {name: f"{STORE_ON_NODE}/{artifact.path.name}" for name, artifact in artifacts.items()}


def running(lab: Rendered) -> bool:
    """Whether all nodes of the lab run."""
    host = provider(lab)
    return all(host.status(node) is NodeState.RUNNING for node in lab.nodes)


def _examine(lab: Rendered) -> None:
    """Run the doctor's probes and refuse to go on where one fails."""
    from lab import doctor  # slow to load, and needed here alone

    findings = doctor.examine(lab)
    step = current_step()
    for finding in findings:
        if step:
            why = f"; {finding.cause}" if finding.cause else ""
            step.write(f"{finding.status}: {finding.title}: {finding.evidence}{why}\n")
    failed = [finding for finding in findings if finding.status == "fail"]
    if failed:
        raise LabError(
            f"this host cannot run lab {lab.id} yet: {len(failed)} of {len(findings)} probes failed",
            details=[
                line
                for finding in failed
                for line in (f"{finding.title}: {finding.cause}", f"  fix: {finding.fix}")
            ],
            hint="`lab doctor` shows all probes and what they saw",
            code=ExitCode.HOST,
        )


def _artifacts(lab: Rendered, steps: Steps) -> dict[str, Artifact]:
    """What the lab runs on; on emulated processors also the compiled programs, if they are at hand.

    They fit where the kernel is the box's; a node passes over those that do not, and compiles.
    """
    artifacts = builds.build_all(steps, provider=lab.provider, also={provider(lab).image})
    compiled = builds.locate().get("node-programs") if emulation.slowness() > 1 else None
    return {**artifacts, **({compiled.name: compiled} if compiled else {})}


def _start(lab: Rendered, artifacts: dict[str, Artifact]) -> None:
    step = current_step()
    assert step
    host = provider(lab)
    image = artifacts[host.image].path
    step.change(host.create(image, image.parent))
    step.change(host.start_all(lab.nodes))


def _provision(lab: Rendered, artifacts: dict[str, Artifact], steps: Steps, playbook: str) -> Outcome:
    with steps.step("provision", "Make them a Kubernetes cluster") as step:
        step.change(provision.provision(lab, playbook, steps).changed)
    with steps.step("cluster", "Wait for the cluster") as step:
        nodes = _cluster(lab, artifacts).wait(step, CLUSTER_SECONDS)
    return Outcome(lab, nodes, steps.changed, [step.to_dict() for step in steps.all])


def _require(lab: Rendered, artifacts: dict[str, Artifact]) -> None:
    if provider(lab).image not in artifacts or "kubernetes" not in artifacts:
        die(
            f"the artifacts that lab {lab.id} runs on are not in the store",
            hint="`lab up` builds them again; the lab's data stays",
            code=ExitCode.ARTIFACT,
        )


def _cluster(lab: Rendered, artifacts: dict[str, Artifact]) -> Cluster:
    return Cluster(lab, artifacts["kubernetes"].path / "bin")

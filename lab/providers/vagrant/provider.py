"""The provider `vagrant`: every node a virtual machine with a kernel of its own.

Vagrant makes, starts, halts, saves and restores the machines; the hypervisor is asked directly what there
is, and removes what Vagrant has lost sight of. Disks that are handed in, networks and the pool are made
here beforehand: several machines may then start at once, each by a Vagrant of its own.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lab import ssh
from lab.errors import ExitCode, LabError, die
from lab.files import write_atomic
from lab.providers.base import NodeState, Provider, known_snapshot, new_snapshot, say
from lab.providers.vagrant import settings
from lab.providers.vagrant.acceleration import Acceleration
from lab.providers.vagrant.disks import Disks
from lab.providers.vagrant.hypervisor import ABSENT, OFF, PAUSED, RUNNING, Hypervisor, hypervisor
from lab.providers.vagrant.machines import Machines
from lab.render import Rendered, RenderedNode
from lab.steps import side_by_side

ANSWER_SECONDS = 30.0  # of a node that runs already
CONSOLE_BYTES = 256 * 1024


class Vagrant(Provider):
    """The nodes of one lab as virtual machines."""

    name = "vagrant"
    snapshots_run = True
    routed = False

    def __init__(self, lab: Rendered) -> None:
        super().__init__(lab)
        self._disks = Disks(lab)
        self._vagrant = Machines(self._disks)

    @property
    def image(self) -> str:  # type: ignore[override]
        """The lab's own box; for a lab that chose somebody else's by name, what makes that one like it."""
        return "node-packages" if self.lab.box else hypervisor(self.lab.hypervisor, self._disks).image

    @cached_property
    def _host(self) -> Hypervisor:
        """Of the machines as they were made; of those that the lab file says, where none were."""
        try:
            written = self._written()
        except PermissionError:  # who is not root may ask what runs
            written = None
        name = written.get("hypervisor", "libvirt") if written else self.lab.hypervisor
        return hypervisor(name, self._disks)

    @property
    def slowness(self) -> float:  # type: ignore[override]
        return float((self._written() or {}).get("slowness", 1.0))

    def create(self, image: Path, store: Path) -> int:
        if not (image / ("adopt" if self.lab.box else "underpass.box")).is_file():
            die(f"{image} is no {self.image}", hint=f"`lab build {self.image}`", code=ExitCode.ARTIFACT)
        before = self._written()
        self._refuse_another_hypervisor()
        self._host.ensure()  # not counted: they belong to the host
        old = {node["name"]: _rendered(node["rendered"]) for node in (before or {}).get("nodes", [])}
        self.refuse_moves(old)
        self._refuse_another_box(before, old.values())
        changed = self._disks.make()
        document = settings.document(self.lab, self._disks, image, self._driver(before))
        changed += self.remove_dropped(old)
        changed += self._host.prepare(document)
        changed += sum(self._disks.make_identity(node) for node in self.lab.nodes)
        changed += self._disks.make_store(store)
        return changed + int(write_atomic(self._disks.settings, settings.dump(document), 0o600))

    def start(self, node: RenderedNode) -> int:
        self._require_made(node)
        self._host.ensure()
        state = self._host.state(node.machine)
        if state == PAUSED:
            self._host.resume(node.machine)
            self._step_clocks([node])
            return 1
        if state == RUNNING:
            if self._disks.started_with(node.name) != self._disks.offered():
                say(f"{node.name} runs with older artifacts; restarting it")
            elif self._answers(node, ANSWER_SECONDS):
                return 0
            else:
                say(f"{node.name} runs but does not answer on ssh; restarting it")
            self.stop(node)
            state = OFF
        self._disks.note_start(node.name)
        with self._first(made=bool(state)):
            self._vagrant.up(node, self._tail)
        adopted = bool(self.lab.box)  # and booting again
        if not self._answers(node, settings.BOOT_SECONDS * self.slowness if adopted else ANSWER_SECONDS):
            raise LabError(
                f"{node.name} is up but does not answer with the lab's keys",
                details=["the end of its console:", *self.console(node, 30).splitlines()],
                hint=f"`lab logs --console {node.name}` shows all of its console",
                code=ExitCode.NODE,
            )
        return 1

    def start_all(self, nodes: Sequence[RenderedNode]) -> int:
        """Those that were never started are made by one Vagrant, which does what they share once."""
        self._host.ensure()
        new = [node for node in nodes if not self._host.state(node.machine)]
        if len(new) < 2 or len(new) < len(self.lab.nodes):
            return side_by_side(self.start, nodes)
        for node in new:
            self._require_made(node)
            self._disks.note_start(node.name)
        with self._first(made=False):
            self._vagrant.up(None, self._tail)
        return len(new) + side_by_side(self.start, new)

    def stop(self, node: RenderedNode, *, force: bool = False) -> int:
        state = self._host.state(node.machine)
        if state in (ABSENT, OFF):
            return 0
        if state == PAUSED and not force:
            self._host.resume(node.machine)
        if force:
            self._host.power_off(node.machine)
        else:
            self._vagrant.halt(node)
        return 1

    def reboot(self, node: RenderedNode) -> int:
        return self.stop(node) + self.start(node)

    def destroy(self) -> int:
        if not self.leftovers():
            return 0
        self._host.ensure()
        changed = sum(self._host.remove(name) for name in sorted(self._host.machines()))
        changed += self._host.clear()
        changed += self._disks.remove()
        ssh.forget(self.lab)
        self._host.stop_if_idle()
        return changed

    def remove(self, node: RenderedNode) -> int:
        self._vagrant.destroy(node)
        return self._host.remove(node.machine) + self._disks.forget(node.name)

    def status(self, node: RenderedNode) -> NodeState:
        state = self._host.state(node.machine)
        if state and state != OFF:
            return NodeState.RUNNING
        made = self._written() or {"nodes": []}
        there = state or any(other["name"] == node.name for other in made["nodes"])
        return NodeState.STOPPED if there else NodeState.ABSENT

    def console(self, node: RenderedNode, lines: int = 50) -> str:
        file = self._disks.console(node.name)
        if not file.exists() or lines <= 0:
            return ""
        text = file.read_bytes()[-CONSOLE_BYTES:].decode("utf-8", errors="replace")
        return "\n".join(ssh.clean(text).splitlines()[-lines:])

    def leftovers(self) -> list[str]:
        lines = [f"virtual machine {name}" for name in self._host.machines()]
        lines += self._host.leftovers()
        lines += [f"folder {path}" for path in (self._disks.top,) if path.exists()]
        return sorted(lines)

    def snapshot_save(self, name: str) -> int:
        new_snapshot(name, self.snapshots())
        for node in self.lab.nodes:
            if not self._host.state(node.machine):  # Vagrant would pass over it, and say that it was saved
                die(f"{node.name} was never started", hint="`lab up` starts it", code=ExitCode.NOT_THERE)
        with self._held() as ran:
            self._vagrant.snapshot_save(name)
        self._step_clocks(ran)
        return 1

    def snapshot_restore(self, name: str) -> int:
        known_snapshot(name, self.snapshots())
        # Not by Vagrant: it would bring one machine back after the other, and wait for the ssh of each.
        side_by_side(lambda node: self._host.revert(node.machine, name), self.lab.nodes)
        paused = [node for node in self.lab.nodes if self._host.state(node.machine) == PAUSED]
        for node in paused:
            self._host.resume(node.machine)
        self._step_clocks(paused)
        return 1

    def snapshot_delete(self, name: str) -> int:
        known_snapshot(name, self.snapshots())
        self._vagrant.snapshot_delete(name)
        return 1

    def snapshots(self) -> list[str]:
        """Those that every node has."""
        each = [self._host.snapshots(node.machine) for node in self.lab.nodes]
        return [name for name in each[0] if all(name in other for other in each)]

    # How it is done

    def _written(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads(self._disks.settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return document

    def _driver(self, before: dict[str, Any] | None) -> Acceleration:
        """What runs guests here; a lab stays with what it began with."""
        return Acceleration(before["driver"]) if before else self._host.driver()

    def _refuse_another_hypervisor(self) -> None:
        """Machines do not move from one to another, and only theirs knows what there is of them."""
        if self._host.name != self.lab.hypervisor:
            die(
                f"the lab was made with {self._host.name}, and the lab file now says {self.lab.hypervisor}",
                hint="put it back, or `lab down` first",
                code=ExitCode.NODE,
            )

    def _refuse_another_box(self, before: dict[str, Any] | None, old: Iterable[RenderedNode]) -> None:
        """What machines are made from, and so how Vagrant gets into them, stays while there are any."""
        was = before["box"] if before and before.get("adopt") else None
        if before and was != self.lab.box and any(self._host.state(node.machine) for node in old):
            own = "the lab's own box"
            die(
                f"the machines were made from {was or own}, and the lab file now says {self.lab.box or own}",
                hint="put it back, or `lab down` first",
                code=ExitCode.NODE,
            )

    def _require_made(self, node: RenderedNode) -> None:
        if self.status(node) is NodeState.ABSENT:
            die(f"{node.name} was never made", hint="`lab up` makes it", code=ExitCode.NOT_THERE)

    @contextmanager
    def _first(self, *, made: bool) -> Iterator[None]:
        """One at a time while a machine is made: Vagrants share the box and its copy in the pool."""
        with (self._disks.top / "lock").open("w", encoding="ascii") as file:
            if not made:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _held(self) -> Iterator[list[RenderedNode]]:
        """All running nodes stand still at one moment; they go on at the end."""
        ran = [node for node in self.lab.nodes if self._host.state(node.machine) == RUNNING]
        try:
            for node in ran:
                self._host.suspend(node.machine)
            yield ran
        finally:
            for node in ran:
                self._host.resume(node.machine, strict=False)

    def _step_clocks(self, nodes: Sequence[RenderedNode]) -> None:
        """Before anything else: a machine that stood still does not know how long."""

        def step(node: RenderedNode) -> int:
            if not self._answers(node, ANSWER_SECONDS * self.slowness):
                die(f"{node.name} does not answer after it stood still", code=ExitCode.NODE)
            # The connection first: making one takes a while, in which the time goes on.
            ssh.on_node(self.lab, node, ["true"])
            ssh.on_node(self.lab, node, ["date", "-s", f"@{time.time():.3f}"])
            return 0

        ssh.forget(self.lab)
        side_by_side(step, nodes)

    def _answers(self, node: RenderedNode, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not ssh.answers_afresh(self.lab, node, 20 * self.slowness):
            if time.monotonic() > deadline or self._host.state(node.machine) != RUNNING:
                return False
            time.sleep(0.2)
        return True

    def _tail(self) -> list[str]:
        """The ends of all consoles, for a fault."""
        return [
            line
            for node in self.lab.nodes
            for line in (f"the end of {node.name}'s console:", *self.console(node, 15).splitlines())
        ]


def _rendered(fields: dict[str, Any]) -> RenderedNode:
    return RenderedNode(**{**fields, "roles": tuple(fields["roles"])})

"""The provider `nspawn`: every node a system container that shares the host's kernel."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from lab import emulation, ssh
from lab.errors import ExitCode, LabError, die
from lab.providers.base import NodeState, Provider, say
from lab.providers.nspawn import identity, mounts
from lab.providers.nspawn.cgroups import Cgroups, hierarchies
from lab.providers.nspawn.disks import ROOTFS, Disks, Made
from lab.providers.nspawn.machine import Machine
from lab.providers.nspawn.network import Network
from lab.providers.nspawn.snapshots import Snapshots
from lab.render import Rendered, RenderedNode
from lab.run import run
from lab.steps import side_by_side

BOOT_SECONDS = 60.0
ANSWER_SECONDS = 15.0  # of a node that runs already
STOP_SECONDS = 60.0


P = ParamSpec("P")
R = TypeVar("R")

_HINTS = {
    errno.ENOSPC: "no space is left: `df` shows where, `lab build --clean` removes what no lab uses",
    errno.EDQUOT: "a disk quota is used up: `quota` shows whose",
    errno.EPERM: "run as root, or with sudo",
    errno.EACCES: "run as root, or with sudo",
    errno.EROFS: "the lab's folder is on a read-only file system",
}


def _plainly(method: Callable[P, R]) -> Callable[P, R]:
    """Let a fault of the operating system speak to a person."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except OSError as fault:
            where = f" ({fault.filename})" if fault.filename else ""
            raise LabError(
                f"the host refused what the nodes need: {fault.strerror or fault}{where}",
                hint=_HINTS.get(fault.errno or 0, "`lab doctor` probes what nodes need of the host"),
                code=ExitCode.NODE,
            ) from fault

    return call


class Nspawn(Provider):
    """The nodes of one lab as systemd-nspawn containers."""

    name = "nspawn"

    @property
    def slowness(self) -> float:  # type: ignore[override]
        """Nodes share the host's processors, which may be emulated themselves."""
        return emulation.slowness()

    def __init__(self, lab: Rendered) -> None:
        super().__init__(lab)
        self._disks = Disks(lab)
        self._network = Network(lab)
        self._snapshots = Snapshots(self._disks)
        self._hierarchies = hierarchies()

    @_plainly
    def create(self, image: Path, store: Path) -> int:
        before = self._disks.made()
        old = before.nodes if before else {}
        self.refuse_moves(old)
        changed = self.remove_dropped(old)
        changed += self._disks.remember(Made({node.name: node for node in self.lab.nodes}, store))
        changed += self._network.ensure_switch()
        for node in self.lab.nodes:
            machine = self._machine(node)
            if machine.pid() is None:
                changed += self._disks.make(node.name, image)
                continue
            changed += self._network.ensure_node(node, machine.init_pid())
            changed += self._cgroups(node).limit(node.cpus, node.memory)
            if self._disks.image(node.name) != image:
                say(f"{node.name} runs on an older image; `lab stop` and `lab start` put it onto the new one")
        return changed

    @_plainly
    def start(self, node: RenderedNode) -> int:
        machine = self._machine(node)
        if not self._disks.there(node.name) or (made := self._disks.made()) is None:
            die(f"{node.name} was never made", hint="`lab up` makes it", code=ExitCode.NOT_THERE)
        if machine.pid() is not None:
            if machine.wait(ANSWER_SECONDS * self.slowness):
                return 0
            say(f"{node.name} runs but does not answer on ssh; restarting it")
            self.stop(node)
        self._clear(node)
        image = self._disks.image(node.name)
        identity.write(self.lab, node, image / ROOTFS, self._disks.upper(node.name))
        self._network.ensure_switch()
        self._network.ensure_node(node)
        cgroups = self._cgroups(node)
        cgroups.make()
        cgroups.limit(node.cpus, node.memory)
        machine.launch(image, made.store)
        boot_seconds = BOOT_SECONDS * self.slowness
        if not machine.wait(boot_seconds):
            ended = machine.pid() is None
            raise LabError(
                f"{node.name} ended while it booted"
                if ended
                else f"{node.name} does not answer on ssh {boot_seconds:g} s after its start",
                details=["the end of its console:", *machine.console(30, this_boot=True).splitlines()],
                hint=f"`lab logs --console {node.name}` shows all of its console",
                code=ExitCode.NODE,
            )
        return 1

    @_plainly
    def stop(self, node: RenderedNode, *, force: bool = False) -> int:
        machine = self._machine(node)
        running = machine.pid() is not None
        stop_seconds = STOP_SECONDS * self.slowness
        if running and not force and not machine.power_off(stop_seconds):
            say(f"{node.name} did not shut down within {stop_seconds:g} s; its power is cut")
        elif running and not force:
            machine.drain_console()
        self._clear(node)
        return int(running)

    @_plainly
    def reboot(self, node: RenderedNode) -> int:
        return self.stop(node) + self.start(node)

    @_plainly
    def destroy(self) -> int:
        nodes = self._known()
        changed = side_by_side(self._destroy_node, nodes)
        changed += Cgroups(self.lab.cgroup, self._hierarchies).remove()
        changed += self._network.remove_switch()
        for point in mounts.below(self._disks.top):
            mounts.detach(point)
            changed += 1
        changed += self._disks.remove_all()
        ssh.forget(self.lab)
        return changed

    @_plainly
    def remove(self, node: RenderedNode) -> int:
        self.stop(node)
        return self._destroy_node(node)

    @_plainly
    def status(self, node: RenderedNode) -> NodeState:
        if self._machine(node).pid() is not None:
            return NodeState.RUNNING
        return NodeState.STOPPED if self._disks.there(node.name) else NodeState.ABSENT

    @_plainly
    def console(self, node: RenderedNode, lines: int = 50) -> str:
        return self._machine(node).console(lines)

    @_plainly
    def leftovers(self) -> list[str]:
        lab = Cgroups(self.lab.cgroup, self._hierarchies)
        lines = [f"process {pid}" for pid in sorted(lab.processes())]
        lines += [f"cgroup {folder}" for folder in lab.existing()]
        lines += self._network.found()
        lines += [f"mount {point}" for point in mounts.below(self._disks.top)]
        lines += [f"folder {path}" for path in (self._disks.top,) if path.exists()]
        lines += [f"socket {path}" for path in sorted(ssh.SOCKETS.glob(f"{self.lab.tag}-*"))]
        return lines

    @_plainly
    def snapshot_save(self, name: str) -> int:
        self._require_off("saved")
        return self._snapshots.save(name)

    @_plainly
    def snapshot_restore(self, name: str) -> int:
        self._require_off("restored")
        return self._snapshots.restore(name)

    @_plainly
    def snapshot_delete(self, name: str) -> int:
        return self._snapshots.delete(name)

    @_plainly
    def snapshots(self) -> list[str]:
        return self._snapshots.names()

    def _machine(self, node: RenderedNode) -> Machine:
        return Machine(self.lab, node, self._disks, self._cgroups(node))

    def _cgroups(self, node: RenderedNode) -> Cgroups:
        return Cgroups(node.cgroup, self._hierarchies)

    def _known(self) -> list[RenderedNode]:
        """The lab's nodes, and those of an earlier lab file that are still made."""
        made = self._disks.made()
        now = {node.name: node for node in self.lab.nodes}
        return list(({**made.nodes, **now} if made else now).values())

    def _destroy_node(self, node: RenderedNode) -> int:
        return self._clear(node) + self._disks.remove(node.name)

    def _clear(self, node: RenderedNode) -> int:
        """End whatever still runs of a node and remove all of it but its disk."""
        self._machine(node).await_launch()
        changed = self._cgroups(node).remove() + self._network.remove_node(node)
        self._hang_up(node)
        return changed

    def _hang_up(self, node: RenderedNode) -> None:
        """Close the shared ssh connection to a node that is gone; its users would wait for it."""
        config = self.lab.folder / "ssh_config"
        if config.exists() and any(ssh.SOCKETS.glob(f"{self.lab.tag}-*")):
            run(["ssh", "-F", config, "-O", "exit", node.address], ok=range(256), timeout=10)

    def _require_off(self, what: str) -> None:
        running = [node.name for node in self._known() if self._machine(node).pid() is not None]
        if running:
            die(
                f"disks are {what} while the nodes are off, and {', '.join(running)} runs",
                hint="`lab stop` powers them off",
                code=ExitCode.NODE,
            )

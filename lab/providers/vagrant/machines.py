"""Vagrant itself, by python-vagrant: its calls, with faults that speak and logs that go to the step."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import vagrant

from lab.errors import ExitCode, LabError
from lab.paths import ROOT
from lab.providers.vagrant.disks import Disks
from lab.render import RenderedNode
from lab.steps import current_step

TAIL = 20


class Machines:
    """The machines of one lab as Vagrant has them."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks

    def up(self, node: RenderedNode | None, tail: Callable[[], list[str]]) -> None:
        """Make or start `node`, or all machines; waits for ssh, no longer than the settings say.

        A machine from a box of somebody else's is adopted: that is the Vagrantfile's to say how.
        """
        how: dict[str, Any] = {"provision_with": ["adopt"]} if self._disks.lab.box else {"provision": False}
        with self._call("up", tail) as machines:
            machines.up(vm_name=node.name if node else None, provider=self._disks.lab.hypervisor, **how)

    def halt(self, node: RenderedNode) -> None:
        with self._call("halt") as machines:
            machines.halt(vm_name=node.name)

    def destroy(self, node: RenderedNode) -> None:
        with self._call("destroy") as machines:
            machines.destroy(vm_name=node.name)

    def snapshot_save(self, name: str) -> None:
        with self._call("snapshot save") as machines:
            machines.snapshot_save(name)

    def snapshot_delete(self, name: str) -> None:
        with self._call("snapshot delete") as machines:
            machines.snapshot_delete(name)

    @contextmanager
    def _call(self, what: str, tail: Callable[[], list[str]] = list) -> Iterator[Any]:
        """A Vagrant for one call. What it prints is the step's log, and the details of a fault."""
        log = self._disks.top / f"vagrant-{os.getpid()}-{id(object())}.log"
        environment = {
            **os.environ,
            "VAGRANT_DOTFILE_PATH": str(self._disks.dot),
            # Somebody else's boxes are where this user's Vagrant has them, or gets them to.
            **({} if self._disks.lab.box else {"VAGRANT_HOME": str(self._disks.home)}),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
        }

        @contextmanager
        def to_log() -> Iterator[IO[str]]:
            with log.open("a", encoding="utf-8") as file:
                yield file

        make: Callable[..., Any] = vagrant.Vagrant
        try:
            yield make(root=str(ROOT), env=environment, out_cm=to_log, err_cm=to_log)
        except (subprocess.CalledProcessError, OSError) as fault:
            said = _text(log).splitlines()[-TAIL:]
            raise LabError(
                f"vagrant {what} failed: {fault}",
                details=[*said, *tail()],
                hint=f"`lab doctor` looks at Vagrant and {self._disks.lab.hypervisor}",
                code=ExitCode.NODE,
            ) from fault
        finally:
            if step := current_step():
                step.write(_text(log))
            log.unlink(missing_ok=True)


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

"""Runs a playbook on a lab's nodes, by ansible-runner: its plays are steps, its faults are ours.

Ansible gets the lab's rendered inventory and nothing of the user's own configuration. What it says
goes to the step's log; its events are kept in the lab's folder, of the last few runs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import ansible_runner
import yaml

from lab import paths, ssh
from lab.errors import ExitCode, LabError, die
from lab.files import write_atomic
from lab.paths import ROOT
from lab.providers import provider
from lab.render import Rendered
from lab.steps import Step, Steps, current_step

PLAYBOOKS = ROOT / "playbooks"
RUNS_KEPT = 5
TAIL_LINES = 20
#: Seconds that a playbook has to end in order after an interruption.
END_SECONDS = 10.0

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Result:
    """What a playbook changed (or, as a check, would change): `what` has one `host: task` for each."""

    what: tuple[str, ...]

    @property
    def changed(self) -> int:
        return len(self.what)


@dataclass
class _Fault:
    host: str
    task: str
    message: str
    unreachable: bool


def provision(
    lab: Rendered, playbook: str, steps: Steps, *, check: bool = False, tags: str | None = None
) -> Result:
    """Run `playbook` (a file of playbooks/) on the lab's nodes.

    `check` changes nothing and finds out what would be. `tags` limits the run to roles by name.
    Raises `LabError` (PROVISION) for a task that failed or a node that did not answer.
    """
    inventory = lab.folder / "inventory.yaml"
    if not (PLAYBOOKS / playbook).is_file():
        die(f"there is no playbook {playbook} in {PLAYBOOKS}", code=ExitCode.USAGE)
    if not inventory.exists():
        die(f"lab {lab.id} was never rendered", hint="`lab up` brings it up", code=ExitCode.NOT_THERE)
    options = ["--check", "--diff"] if check else []
    options += ["--tags", tags] if tags else []
    arguments = [playbook, "--inventory", str(inventory), *options]
    write_variables(lab)
    home = lab.folder / "ansible"
    home.mkdir(exist_ok=True, mode=0o700)
    ssh.SOCKETS.mkdir(mode=0o700, exist_ok=True)
    watcher = _Watcher(steps, Path(playbook).stem)
    status = _run(home, arguments, watcher)
    if watcher.faults or status != 0:
        raise _error(lab, watcher, arguments, status)
    return Result(tuple(watcher.changed))


def environment(home: Path) -> dict[str, str]:
    """What Ansible's environment has beyond ours; `home` is where it may keep files."""
    return {
        "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
        "ANSIBLE_HOME": str(home / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }


def write_variables(lab: Rendered) -> None:
    """Tell the roles what the lab's images are called (`underpass_images`, short name -> full name), and
    how many times longer than on the host things take on the nodes (`underpass_slowness`).

    The indexes are in the artifacts; a variable beside the inventory saves each role a question to a node.
    """
    inventory = yaml.safe_load((lab.folder / "inventory.yaml").read_text(encoding="utf-8"))
    variables = inventory["all"]["vars"]
    names: dict[str, str] = {}
    for artifact in variables["underpass_lab"]["image_artifacts"]:
        on_node = PurePosixPath(variables["underpass_artifacts"].get(artifact, artifact))
        index = paths.cache() / "store" / on_node.name / "index.json"
        try:
            archives: dict[str, str] = json.loads(index.read_bytes())
        except (OSError, ValueError) as fault:
            die(
                f"the images that lab {lab.id} runs on are not in the artifact store: {fault}",
                hint="`lab up` builds them again",
                code=ExitCode.ARTIFACT,
            )
        names |= {archive.removesuffix(".tar"): name for archive, name in archives.items()}
    folder = lab.folder / "group_vars"
    folder.mkdir(exist_ok=True, mode=0o700)
    write_atomic(
        folder / "all.yaml",
        yaml.safe_dump({"underpass_images": names, "underpass_slowness": provider(lab).slowness}),
    )


class _Watcher:
    """Turns Ansible's events into steps, a log, a list of changes and a list of faults."""

    def __init__(self, steps: Steps, name: str) -> None:
        self.changed: list[str] = []
        self.faults: list[_Fault] = []
        self.output: list[str] = []
        self._steps = steps
        self._name = name
        self._play = ExitStack()
        self._number = 0
        self._step: Step | None = current_step()

    def handle(self, event: Mapping[str, Any]) -> bool:
        """One event. Whether ansible-runner is to keep it in a file."""
        if text := _COLOURS.sub("", event.get("stdout") or ""):
            self.output.append(text)
            if self._step:
                self._step.write(f"{text}\n")
        data = event.get("event_data") or {}
        kind = event.get("event", "")
        if kind == "playbook_on_play_start":
            self._open(str(data.get("name")))
        elif kind == "playbook_on_task_start":
            if self._step and data.get("task_action") != "ansible.builtin.validate_argument_spec":
                self._step.say(_task(data))
        elif kind == "runner_on_ok":
            if (data.get("res") or {}).get("changed"):
                self.changed.append(f"{data.get('host')}: {_task(data)}")
        elif kind in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            self._fault(data, unreachable=kind == "runner_on_unreachable")
        return str(kind).startswith(("runner_on_", "playbook_on_stats"))

    def close(self, *, failed: bool) -> None:
        """End the step of the last play."""
        if not failed:
            self._play.close()
            return
        fault = _PlayFailed()
        try:
            raise fault
        except _PlayFailed:
            self._play.__exit__(*sys.exc_info())

    def _open(self, name: str) -> None:
        self._play.close()
        self._number += 1
        identity = f"{self._name}-{self._number}"
        self._step = self._play.enter_context(_tolerant(self._steps, identity, name))

    def _fault(self, data: Mapping[str, Any], *, unreachable: bool) -> None:
        result = data.get("res") or {}
        parts = [
            str(result[key]).strip()
            for key in ("msg", "stdout", "stderr", "module_stderr")
            if result.get(key)
        ]
        message = "\n".join(part for part in parts if part) or "it failed and said nothing"
        self.faults.append(_Fault(str(data.get("host")), _task(data), message, unreachable))


class _PlayFailed(Exception):
    """Marks the step of the play in which a task failed."""


@contextmanager
def _tolerant(steps: Steps, identity: str, title: str) -> Iterator[Step]:
    """A step whose failure mark does not travel further: the fault itself is raised at the end."""
    try:
        with steps.step(identity, title) as step:
            yield step
    except _PlayFailed:
        return


def _task(data: Mapping[str, Any]) -> str:
    """The task's name without that of its role."""
    name = str(data.get("task") or data.get("name") or "?")
    return name.removeprefix(f"{data.get('role')} : ")


@dataclass
class _Interrupt:
    """Ends the playbook in order when a signal came: asked first, then killed."""

    pid_file: Path
    signal: int | None = None
    asked: float | None = field(default=None, init=False)

    def note(self, number: int, _frame: object) -> None:
        self.signal = number

    def cancel(self) -> bool:
        """Called by ansible-runner again and again; True makes it kill the playbook."""
        if self.signal is None:
            return False
        if self.asked is None:
            self.asked = time.monotonic()
            try:
                os.kill(int(self.pid_file.read_text(encoding="ascii")), signal.SIGTERM)
            except (OSError, ValueError):
                return True
        return time.monotonic() - self.asked > END_SECONDS


def _run(home: Path, arguments: list[str], watcher: _Watcher) -> int:
    """Run ansible-playbook to its end; its exit status. An interruption ends it and goes on."""
    interrupt = _Interrupt(home / "pid")
    interrupt.pid_file.unlink(missing_ok=True)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt.note) for number in numbers}
    identity = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    leash = ["-m", "lab.leashed", str(interrupt.pid_file), "ansible-playbook", *arguments]
    status = 1
    try:
        done = ansible_runner.run(
            private_data_dir=str(home),
            project_dir=str(PLAYBOOKS),
            ident=identity,
            rotate_artifacts=RUNS_KEPT,
            binary=sys.executable,
            cmdline=shlex.join(leash),
            envvars=environment(home),
            settings={"pexpect_timeout": 1},
            suppress_env_files=True,
            event_handler=watcher.handle,
            cancel_callback=interrupt.cancel,
            quiet=True,
        )
        status = int(done.rc if done.rc is not None else 1)
    finally:
        watcher.close(failed=bool(watcher.faults) or status != 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        # It holds our whole environment.
        (home / "artifacts" / identity / "command").unlink(missing_ok=True)
        interrupt.pid_file.unlink(missing_ok=True)
    if interrupt.signal == signal.SIGTERM:
        sys.exit(128 + signal.SIGTERM)
    if interrupt.signal is not None:
        raise KeyboardInterrupt
    return status


def _error(lab: Rendered, watcher: _Watcher, arguments: list[str], status: int) -> LabError:
    """The first fault, as something that a person can act on."""
    command = f"command: cd {shlex.quote(str(PLAYBOOKS))} && {_paste(arguments)}"
    if not watcher.faults:
        lines = "\n".join(watcher.output).strip().splitlines()[-TAIL_LINES:]
        return LabError(
            f"the playbook {arguments[0]} ended with status {status}",
            details=[command, *lines],
            code=ExitCode.PROVISION,
        )
    fault = watcher.faults[0]
    others = sorted({other.host for other in watcher.faults} - {fault.host})
    also = f" (and on {', '.join(others)})" if others else ""
    if fault.unreachable:
        return LabError(
            f"{fault.host} did not answer on ssh{also}, at: {fault.task}",
            hint=f"`lab status` shows what the nodes do; `lab logs --console {fault.host}` what it printed",
            details=[command, *fault.message.strip().splitlines()[-TAIL_LINES:]],
            code=ExitCode.PROVISION,
        )
    return LabError(
        f"{fault.host}: {fault.task}: failed{also}",
        hint=f"`lab logs {fault.host}` shows its journal; mended, `lab up` goes on from here",
        details=[command, *_head_and_tail(fault.message)],
        code=ExitCode.PROVISION,
    )


def _head_and_tail(message: str) -> list[str]:
    """The first line, which says what is wrong, and the last ones, which say more."""
    lines = message.strip().splitlines()
    return lines[:1] + lines[1:][-TAIL_LINES:]


def _paste(arguments: list[str]) -> str:
    """The command that repeats the run by hand."""
    program = shutil.which("ansible-playbook", path=str(Path(sys.executable).parent)) or "ansible-playbook"
    return shlex.join([program, *arguments])

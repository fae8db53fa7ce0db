#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes systemd units be enabled, running, running with the files that are there now, and ready."""

from __future__ import annotations

DOCUMENTATION = r"""
module: underpass_units
short_description: Makes systemd units run with the configuration that is on the node
description:
  - Enables and starts units, restarts those that were started with another configuration than the
    one on the node now (C(unit-config) knows, see there), and waits until all are ready.
  - Units are given in the order in which they need each other.
options:
  units:
    description: The units.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the unit, with its suffix.
        type: str
        required: true
      check:
        description: Command that fails when what the unit made has been undone. Then it is restarted.
        type: list
        elements: str
      url:
        description: URL that answers 200 when the unit is ready.
        type: str
      socket:
        description: UNIX socket that accepts a connection when the unit is ready.
        type: str
      ca:
        description: File with the authority that O(units[].url) is checked against.
        type: str
      certificate:
        description: File with the client certificate for O(units[].url).
        type: str
      key:
        description: File with the key of the client certificate.
        type: str
  state:
    description: V(started) as above; V(stopped) stops and disables the units, last one first.
    type: str
    choices: [started, stopped]
    default: started
  timeout:
    description: Seconds that all units together may take until they are ready.
    type: int
    default: 90
  placed:
    description: Paths that were placed before. In check mode, where they were not, tells what would be
      restarted.
    type: list
    elements: str
    default: []
author:
  - Underpass
"""

EXAMPLES = r"""
- name: Run etcd
  underpass_units:
    units:
      - name: etcd.service
"""

RETURN = r"""
enabled:
  description: Units that were enabled (or disabled).
  type: list
  elements: str
  returned: success
started:
  description: Units that were started (or stopped).
  type: list
  elements: str
  returned: success
restarted:
  description: Units that ran with another configuration, or whose work was undone.
  type: list
  elements: str
  returned: success
"""

import socket  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

UNIT_CONFIG = Path("/usr/local/lib/underpass/unit-config")
PROPERTIES = "Id,ActiveState,SubState,UnitFileState,InvocationID,NeedDaemonReload,Result,ExecMainStatus"
UNIT_FOLDER = "/etc/systemd/system/"
PAUSE = 0.1  # seconds between two questions whether a unit is ready
ASK_SECONDS = 5
JOURNAL_LINES = 20


#: Unit name -> its properties.
Shown = dict[str, dict[str, str]]


class NotReady(Exception):
    """A unit is not ready yet; the text says what it answers."""


class Units:
    """The units of one task."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.units = module.params["units"]
        self.names = [unit["name"] for unit in self.units]
        self.deadline = time.monotonic() + module.params["timeout"]

    def run(self, *argv: str) -> tuple[int, str, str]:
        """A command's status, stdout and stderr."""
        status, out, err = self.module.run_command(list(argv))
        return status, out, err

    def must(self, *argv: str) -> str:
        """A command's stdout; its failure is the task's."""
        status, out, err = self.run(*argv)
        if status:
            self.module.fail_json(msg=f"{' '.join(argv)}: {err.strip() or out.strip()}")
        return out

    def show(self) -> Shown:
        """Unit name -> its properties."""
        out = self.must("systemctl", "show", f"--property={PROPERTIES}", "--", *self.names)
        blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in out.split("\n\n")]
        return dict(zip(self.names, [block for block in blocks if block], strict=True))

    def stale(self, shown: Shown) -> list[str]:
        """Those of the running units that were not started with the files that are there now."""
        running = [name for name in self.names if shown[name]["ActiveState"] == "active"]
        if not running or not UNIT_CONFIG.exists():
            return running
        noted = {}
        for line in self.must(str(UNIT_CONFIG), "list", *running).splitlines():
            name, invocation, state = line.split()
            noted[name] = state if invocation == shown[name]["InvocationID"] else "stale"
        return [name for name in running if noted.get(name) != "fresh"]

    def undone(self, shown: Shown) -> list[str]:
        """Those of the running units whose work does not hold any more."""
        checks = {unit["name"]: unit["check"] for unit in self.units if unit["check"]}
        running = [name for name in checks if shown[name]["ActiveState"] == "active"]
        return [name for name in running if self.run(*checks[name])[0]]

    def reading(self, paths: list[str]) -> list[str]:
        """Those units that read one of `paths`."""
        if not paths or not UNIT_CONFIG.exists():
            return []
        found = set()
        for line in self.must(str(UNIT_CONFIG), "reads", *self.names).splitlines():
            name, read = line.split(" ", 1)
            if any(path == read or path.startswith(read + "/") for path in paths):
                found.add(name)
        return [name for name in self.names if name in found]

    def started(self) -> dict[str, Any]:
        """Enable, start and restart what needs it, and wait. Returns the module's result."""
        placed = self.module.params["placed"]
        check = self.module.check_mode
        shown = self.show()
        reload = any(path.startswith(UNIT_FOLDER) for path in placed)
        reload = reload or any(unit["NeedDaemonReload"] == "yes" for unit in shown.values())
        if reload and not check:
            self.must("systemctl", "daemon-reload")
            shown = self.show()
        enable = [name for name in self.names if shown[name]["UnitFileState"] in ("disabled", "")]
        start = [name for name in self.names if shown[name]["ActiveState"] != "active"]
        again = {*self.stale(shown), *self.undone(shown)}
        again |= set(self.reading(placed)) - set(start) if check else set()
        restart = [name for name in self.names if name in again]
        result = {
            "changed": bool(enable or start or restart),
            "enabled": enable,
            "started": start,
            "restarted": restart,
        }
        if check:
            return result
        self._refuse_masked(shown)
        if enable:
            self.must("systemctl", "enable", "--quiet", "--no-reload", "--", *enable)
        if start or restart:
            self.run("systemctl", "reset-failed", "--", *start)
            status, _, err = self.run(
                "systemctl", "restart", "--", *[name for name in self.names if name in {*start, *restart}]
            )
            if status:
                self.fail(err.strip())
        self.wait()
        return result

    def _refuse_masked(self, shown: Shown) -> None:
        masked = [name for name in self.names if shown[name]["UnitFileState"] == "masked"]
        if masked:
            self.module.fail_json(msg=f"masked by hand: {', '.join(masked)}; `systemctl unmask` them")

    def stopped(self) -> dict[str, Any]:
        """Stop and disable, last one first. Returns the module's result."""
        shown = self.show()
        stop = [
            name for name in reversed(self.names) if shown[name]["ActiveState"] not in ("inactive", "failed")
        ]
        disable = [name for name in self.names if shown[name]["UnitFileState"] == "enabled"]
        if not self.module.check_mode:
            for name in stop:
                self.must("systemctl", "stop", "--", name)
            if disable:
                self.must("systemctl", "disable", "--quiet", "--", *disable)
        return {"changed": bool(stop or disable), "enabled": disable, "started": stop, "restarted": []}

    def wait(self) -> None:
        """Wait until every unit is active and ready; fail with its journal at the deadline."""
        for unit in self.units:
            answer = "no answer"
            while True:
                try:
                    self.ready(unit)
                    break
                except NotReady as not_yet:
                    answer = str(not_yet)
                except OSError as fault:
                    answer = str(fault)
                if time.monotonic() > self.deadline:
                    self.fail(
                        f"{unit['name']} is not ready after {self.module.params['timeout']} s: {answer}"
                    )
                time.sleep(PAUSE)
        shown = self.show()
        if any(shown[name]["ActiveState"] != "active" for name in self.names):
            self.fail("started, and ended again")

    def ready(self, unit: dict[str, Any]) -> None:
        """Ask a unit once. Raises `NotReady` or `OSError`."""
        if unit["socket"]:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ASK_SECONDS)
                client.connect(unit["socket"])
        if unit["url"]:
            self._ask(unit)

    def _ask(self, unit: dict[str, Any]) -> None:
        import http.client
        import ssl

        url = urlsplit(unit["url"])
        client: http.client.HTTPConnection
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=unit["ca"])
            if unit["certificate"]:
                context.load_cert_chain(unit["certificate"], unit["key"])
            client = http.client.HTTPSConnection(url.netloc, timeout=ASK_SECONDS, context=context)
        else:
            client = http.client.HTTPConnection(url.netloc, timeout=ASK_SECONDS)
        try:
            client.request("GET", url.path or "/")
            answer = client.getresponse()
            text = answer.read(4096).decode(errors="replace")
        except http.client.HTTPException as fault:
            raise NotReady(repr(fault)) from None
        finally:
            client.close()
        if answer.status != http.client.OK:
            bad = [line for line in text.splitlines() if line.startswith("[-]")]
            raise NotReady(f"status {answer.status} {'; '.join(bad)}".strip())

    def fail(self, what: str) -> None:
        """End the task with the state and the journal of the first unit that does not run well."""
        shown = self.show()
        bad = [name for name in self.names if shown[name]["ActiveState"] != "active"] or self.names[-1:]
        unit = shown[bad[0]]
        _, journal, _ = self.run(
            "journalctl", f"--unit={bad[0]}", f"--lines={JOURNAL_LINES}", "--no-pager", "--output=cat"
        )
        state = f"{unit['ActiveState']} ({unit['SubState']}), result {unit['Result']}"
        self.module.fail_json(
            msg=f"{bad[0]} is {state}, exit status {unit['ExecMainStatus']}: {what}\n"
            f"The end of its journal:\n{journal.strip()}"
        )


def main() -> None:
    text = {"type": "str"}
    module = AnsibleModule(
        argument_spec={
            "units": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "check": {"type": "list", "elements": "str"},
                    "url": text,
                    "socket": text,
                    "ca": text,
                    "certificate": text,
                    "key": {"type": "str", "no_log": False},
                },
            },
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "timeout": {"type": "int", "default": 90},
            "placed": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    units = Units(module)
    module.exit_json(**(units.started() if module.params["state"] == "started" else units.stopped()))


if __name__ == "__main__":
    main()

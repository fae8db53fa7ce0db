#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Node side of the action `underpass_part`: makes a set of files, and the units that read them, be so."""

from __future__ import annotations

DOCUMENTATION = r"""
module: underpass_part
short_description: Makes one part of a node be as given
description:
  - A part is a set of files, links and directories, and the systemd units that read them.
  - All paths are compared with what is on the node, and what differs is mended; then the units are
    enabled and started, those that were started with other files than are there now are restarted
    (C(unit-config) knows, see there), and all are waited for until they are ready. In one call.
  - What a part has is remembered on the node. So what a later release no longer ships is removed, and
    O(state=absent) needs no list. A file that was there before the part came is kept, and put back.
  - Called through the action of the same name, which renders templates and reads files; what a role
    writes is described there.
options:
  name:
    description: Name of the part.
    type: str
    required: true
  state:
    description: Whether the part is to be there.
    type: str
    choices: [present, absent]
    default: present
  payload:
    description:
      - The paths, packed by the action; base64 of zlib of a JSON list of entries.
      - An entry has C(path), C(kind) (file, link or directory), C(mode) (octal text), C(data)
        (base64, of a file), C(target) (of a link), C(secret), C(purge) (of a directory).
    type: str
    default: ""
  units:
    description: The units, in the order in which they need each other.
    type: list
    elements: dict
    default: []
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
      ca:
        description: File with the authority that the URL is checked against.
        type: str
      certificate:
        description: File with the client certificate for the URL.
        type: str
      key:
        description: File with the key of the client certificate.
        type: str
      socket:
        description: UNIX socket that accepts a connection when the unit is ready.
        type: str
  timeout:
    description: Seconds that all units together may take until they are ready.
    type: int
    default: 90
  root:
    description: Directory that stands for C(/), for tests.
    type: path
    default: /
author:
  - Underpass
"""

EXAMPLES = r"""
- name: Run etcd
  underpass_part:
    name: etcd
    units:
      - name: etcd.service
"""

RETURN = r"""
paths:
  description: Paths that were written, mended or removed, or would be.
  type: list
  elements: str
  returned: always
enabled:
  description: Units that were enabled.
  type: list
  elements: str
  returned: success
started:
  description: Units that were started.
  type: list
  elements: str
  returned: success
restarted:
  description: Units that ran with other files, or whose work was undone.
  type: list
  elements: str
  returned: success
stopped:
  description: Units that were stopped or disabled, as the part no longer has them.
  type: list
  elements: str
  returned: success
"""

import os  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible.module_utils.underpass_tree import Fault, Records, Tree, unpack  # noqa: E402
from ansible.module_utils.underpass_turn import NoTurn, take  # noqa: E402
from ansible.module_utils.underpass_units import Run, UnitFault, Units  # noqa: E402

TEXT = {"type": "str"}
ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "payload": {"type": "str", "default": "", "no_log": True},
    "units": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "check": {"type": "list", "elements": "str"},
            "url": TEXT,
            "ca": TEXT,
            "certificate": TEXT,
            "key": {"type": "str", "no_log": False},
            "socket": TEXT,
        },
    },
    "timeout": {"type": "int", "default": 90},
    "root": {"type": "path", "default": "/"},
}


class Part:
    """One part of a node; its parameters as the module has them."""

    def __init__(self, parameters: dict[str, Any], run: Run, *, check: bool) -> None:
        self.name: str = parameters["name"]
        self.parameters = parameters
        self.run = run
        self.check = check
        self.records = Records(parameters["root"], check)
        self.tree = Tree(self.name, self.records, parameters["root"], check)

    def present(self) -> dict[str, Any]:
        """Make the part be there. Returns what was done to units."""
        entries = unpack(self.parameters["payload"])
        units = self._units(self.parameters["units"])
        before = self.records.read(self.name)
        wanted, had = {entry["path"] for entry in entries}, set(before["paths"])
        # Remembered before anything is made: a run that is killed leaves nothing unknown behind.
        self.tree.keep_originals(wanted - had)
        dropped = [name for name in before["units"] if name not in units.names]
        self.records.write(self.name, wanted | had, dropped + units.names)
        stopped = self._units([{"name": name} for name in dropped]).stopped() if dropped else []
        self.tree.present(entries, had)
        result: dict[str, Any] = {"enabled": [], "started": [], "restarted": []}
        if units.names:
            result = dict(units.started(self.tree.changed))
        self.records.write(self.name, wanted, units.names)
        return {**result, "stopped": stopped}

    def absent(self) -> dict[str, Any]:
        """Remove the part. Returns what was done to units."""
        before = self.records.read(self.name)
        units = self._units([{"name": name} for name in before["units"]])
        stopped = units.stopped() if units.names else []
        self.tree.absent(set(before["paths"]))
        if units.names:
            units.given_back()
        self.records.forget(self.name)
        return {"enabled": [], "started": [], "restarted": [], "stopped": stopped}

    def _units(self, units: list[dict[str, Any]]) -> Units:
        return Units(units, self.run, timeout=self.parameters["timeout"], check=self.check)


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    os.umask(0o022)
    part = Part(module.params, module.run_command, check=module.check_mode)
    done: dict[str, Any] = {}
    try:
        take(module.params["timeout"], module.params["root"])
        done = part.present() if module.params["state"] == "present" else part.absent()
    except (Fault, NoTurn, UnitFault) as fault:
        module.fail_json(msg=str(fault), paths=part.tree.changed)
    except OSError as fault:
        module.fail_json(msg=f"{fault.filename or part.name}: {fault.strerror}", paths=part.tree.changed)
    result = {"changed": bool(part.tree.changed or any(done.values())), "paths": part.tree.changed, **done}
    if module._diff:
        result["diff"] = part.tree.diffs
    module.exit_json(**result)


if __name__ == "__main__":
    main()

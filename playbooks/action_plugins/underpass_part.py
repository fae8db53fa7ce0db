# SPDX-License-Identifier: Apache-2.0
"""Controller side of `underpass_part`: what a role has to place on a node, and the units that read it.

Paths are taken from the role's `templates/` (each file rendered, its `.j2` cut off) and `files/` (each as it
is), where a file lies under the path that it has on the node, and from the task:

    name: etcd                      # of the part; see the module
    files:                          # path on the node: file on this machine
      /etc/kubernetes/pki/ca.crt: "{{ underpass_lab.keys_folder }}/pki/ca.crt"
    links:                          # path on the node: where it leads
      /usr/local/bin/etcdctl: /opt/underpass/current/etcd/bin/etcdctl
    directories:                    # path on the node: mode
      /etc/kubernetes/pki: "0700"
    purge: [/opt/underpass/current] # directories of the above that hold nothing else
    secrets: ["*.key"]              # patterns of paths that are 0600 and never shown
    units: [{name: etcd.service}]   # see the module, as for state and timeout

A file is 0644, or 0755 if its source is executable. All of it goes to the node in one call, with the
contents: comparing there costs less than a second call. Templates see the task's variables; an
undefined one is an error.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

SUFFIX = ".j2"
MAPPINGS = ("files", "links", "directories")
LISTS = ("purge", "secrets")
READY_SECONDS = 90
PLAIN = ("name", "state", "units", "timeout", "root")


class ActionModule(ActionBase):
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Render, pack, and let the node's side compare and mend."""
        super().run(tmp, task_vars)
        variables = dict(task_vars or {})
        args = self._checked_args()
        call = {key: args[key] for key in PLAIN if key in args}
        # The inventory knows how fast the nodes are, the role how long a fast one takes.
        call["timeout"] = round(
            call.get("timeout", READY_SECONDS) * float(variables.get("underpass_slowness", 1))
        )
        if call.get("state", "present") == "present":
            call["payload"] = pack(self._entries(args, variables))
        result: dict[str, Any] = self._execute_module(
            module_name="underpass_part", module_args=call, task_vars=task_vars
        )
        result.pop("invocation", None)
        return result

    def _checked_args(self) -> dict[str, Any]:
        args = dict(self._task.args)
        unknown = sorted(set(args) - {*MAPPINGS, *LISTS, *PLAIN})
        if unknown:
            raise AnsibleActionFail(f"underpass_part knows no {', '.join(unknown)}")
        if not args.get("name"):
            raise AnsibleActionFail("underpass_part needs the name of the part")
        for key in MAPPINGS:
            if not isinstance(args.get(key, {}), Mapping):
                raise AnsibleActionFail(f"underpass_part: {key} is a mapping of paths on the node")
        for key in LISTS:
            if isinstance(args.get(key, []), str | Mapping):
                raise AnsibleActionFail(f"underpass_part: {key} is a list")
        return args

    def _entries(self, args: dict[str, Any], variables: dict[str, Any]) -> list[dict[str, Any]]:
        """The paths, parents before children, each path once."""
        secrets = [str(pattern) for pattern in args.get("secrets", [])]
        purge = {str(path) for path in args.get("purge", [])}
        entries: dict[str, dict[str, Any]] = {}

        def add(entry: dict[str, Any]) -> None:
            if entry["path"] in entries:
                raise AnsibleActionFail(f"{entry['path']} is in the part twice")
            entries[entry["path"]] = entry

        def add_file(path: str, data: bytes, source: Path) -> None:
            secret = any(fnmatch.fnmatchcase(path, pattern) for pattern in secrets)
            mode = "0755" if os.access(source, os.X_OK) else "0644"
            add(
                {
                    "path": path,
                    "kind": "file",
                    "mode": "0600" if secret else mode,
                    "data": base64.b64encode(data).decode(),
                    "secret": secret,
                }
            )

        for path, mode in args.get("directories", {}).items():
            add({"path": path, "kind": "directory", "mode": str(mode), "purge": path in purge})
        for path in sorted(purge - set(entries)):
            raise AnsibleActionFail(f"{path} is to be purged, but is no directory of the part")
        for path, target in args.get("links", {}).items():
            add({"path": path, "kind": "link", "target": str(target)})
        for path, name in args.get("files", {}).items():
            source = Path(str(name))
            add_file(path, self._read(source), source)
        for path, source in self._below("files"):
            add_file(path, self._read(source), source)
        for path, source in self._below("templates"):
            add_file(path.removesuffix(SUFFIX), self._render(source, variables), source)
        return [entries[path] for path in sorted(entries)]

    def _below(self, kind: str) -> Iterator[tuple[str, Path]]:
        """The files of the role's folder `kind`: (path on the node, file here)."""
        role = self._task._role
        folder = Path(role._role_path if role else self._loader.get_basedir()) / kind
        if role is None:
            return
        for source in sorted(folder.rglob("*")):
            if source.is_file():
                yield f"/{source.relative_to(folder)}", source

    def _read(self, source: Path) -> bytes:
        try:
            return source.read_bytes()
        except OSError as fault:
            raise AnsibleActionFail(f"cannot read {source}: {fault.strerror}") from None

    def _render(self, source: Path, variables: dict[str, Any]) -> bytes:
        text = trust_as_template(self._loader.get_text_file_contents(str(source)))
        templar = self._templar.copy_with_new_env(
            searchpath=[str(source.parent), str(Path(self._loader.get_basedir()) / "templates")],
            available_variables=variables,
        )
        overrides = {"trim_blocks": True, "lstrip_blocks": True}
        rendered = templar.template(text, escape_backslashes=False, overrides=overrides)
        if not isinstance(rendered, str):
            raise AnsibleActionFail(f"{source} does not render to text")
        return rendered.encode()


def pack(entries: list[dict[str, Any]]) -> str:
    """The entries as the module unpacks them."""
    return base64.b64encode(zlib.compress(json.dumps(entries).encode())).decode()

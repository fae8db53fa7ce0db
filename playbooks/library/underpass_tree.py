#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Node side of the action `underpass_tree`: makes a set of files, links and directories be there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: underpass_tree
short_description: Makes a named set of files, links and directories be as given
description:
  - Compares a whole set of paths with what is on the node and mends what differs, in one call.
  - The set has a name. Its paths are remembered on the node, so that what a later release no longer
    ships is removed, and so that O(state=absent) needs no list.
  - Called through the action of the same name, which renders templates and reads files. It is
    described there what a role writes.
options:
  name:
    description: Name of the set.
    type: str
    required: true
  state:
    description: Whether the set is to be there.
    type: str
    choices: [present, absent]
    default: present
  payload:
    description:
      - The set, packed by the action; base64 of zlib of a JSON list of entries.
      - An entry has C(path), C(kind) (file, link or directory), C(mode) (octal text), C(data)
        (base64, of a file), C(target) (of a link), C(secret), C(purge) (of a directory).
    type: str
    default: ""
  root:
    description: Directory that stands for C(/), for tests.
    type: path
    default: /
author:
  - Underpass
"""

EXAMPLES = r"""
- name: Place etcd's files
  underpass_tree:
    name: etcd
"""

RETURN = r"""
paths:
  description: Paths that were written, mended or removed, or would be.
  type: list
  elements: str
  returned: always
"""

import base64  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import stat  # noqa: E402
import zlib  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

#: Where a node remembers what is in each set.
RECORDS = "/var/lib/underpass/trees"
#: What half-written files are called; the next run overwrites them.
PART = ".underpass-part"
DIFF_LIMIT = 64 * 1024  # bytes

Entry = dict[str, Any]


class Fault(Exception):
    """Something on the node stands in the way; the text says what."""


class Tree:
    """One set of paths below `root`. With `check`, only finds out what would be changed."""

    def __init__(self, name: str, root: str = "/", check: bool = False) -> None:
        self.name = name
        self.root = Path(root)
        self.check = check
        self.changed: list[str] = []
        self.diffs: list[dict[str, str]] = []

    def present(self, entries: list[Entry]) -> None:
        """Make every entry be there, then remove what the set held before and no longer does."""
        wanted = [entry["path"] for entry in entries]
        before = self._record(self.name)
        # Remembered before anything is written: a run that is killed leaves nothing unknown behind.
        self._remember(sorted({*before, *wanted}))
        place = {"directory": self._directory, "link": self._link, "file": self._file}
        for entry in entries:
            place[entry["kind"]](entry)
        others = self._others()
        for path in sorted(set(before) - set(wanted) - others, reverse=True):
            self._remove(path)
        for entry in entries:
            if entry.get("purge"):
                self._purge(entry["path"], {*wanted, *others})
        self._remember(sorted(wanted))

    def absent(self) -> None:
        """Remove everything that the set holds, innermost first."""
        for path in sorted(set(self._record(self.name)) - self._others(), reverse=True):
            self._remove(path)
        if not self.check:
            self._record_file(self.name).unlink(missing_ok=True)

    def _at(self, path: str) -> Path:
        if not path.startswith("/") or ".." in path.split("/"):
            raise Fault(f"{path} is not an absolute path")
        return self.root / path.lstrip("/")

    def _note(self, path: str, before: str, after: str) -> None:
        """Count a change and keep what --diff shows of it."""
        self.changed.append(path)
        self.diffs.append({"before_header": path, "after_header": path, "before": before, "after": after})

    def _directory(self, entry: Entry) -> None:
        path, mode = entry["path"], int(entry["mode"], 8)
        here = self._at(path)
        status = _status(here)
        if status is None:
            self._note(path, "", f"directory {mode:04o}\n")
            if not self.check:
                here.mkdir(parents=True)
                here.chmod(mode)
        elif not stat.S_ISDIR(status.st_mode):
            raise Fault(f"{path} is in the way: a directory is to be there")
        else:
            self._attributes(path, here, status, mode)

    def _link(self, entry: Entry) -> None:
        path, target = entry["path"], entry["target"]
        here = self._at(path)
        status = _status(here)
        before = str(here.readlink()) if status and stat.S_ISLNK(status.st_mode) else None
        if before == target:
            return
        _refuse_directory(path, status)
        self._note(path, f"link to {before}\n" if before else "", f"link to {target}\n")
        if self.check:
            return
        part = _part(here)
        part.symlink_to(target)
        part.replace(here)

    def _file(self, entry: Entry) -> None:
        path, mode = entry["path"], int(entry["mode"], 8)
        data = base64.b64decode(entry["data"])
        here = self._at(path)
        status = _status(here)
        _refuse_directory(path, status)
        regular = status is not None and stat.S_ISREG(status.st_mode)
        before = here.read_bytes() if regular else None
        if status is not None and before == data:
            self._attributes(path, here, status, mode)
            return
        if entry.get("secret"):
            self._note(path, "(not shown)\n" if regular else "", "(new, not shown)\n")
        else:
            self._note(path, _shown(before), _shown(data))
        if self.check:
            return
        part = _part(here)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        part.replace(here)

    def _attributes(self, path: str, here: Path, status: os.stat_result, mode: int) -> None:
        """Mend mode and owner of something that is otherwise right."""
        user, group = os.geteuid(), os.getegid()
        there = stat.S_IMODE(status.st_mode)
        if there == mode and (status.st_uid, status.st_gid) == (user, group):
            return
        was = f"mode {there:04o} owner {status.st_uid}:{status.st_gid}\n"
        self._note(path, was, f"mode {mode:04o} owner {user}:{group}\n")
        if not self.check:
            os.chown(here, user, group)
            here.chmod(mode)

    def _remove(self, path: str) -> None:
        here = self._at(path)
        status = _status(here)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            self._note(path, "there\n", "")
            if not self.check:
                here.unlink()
        elif not any(here.iterdir()):  # what others have put into a directory is theirs
            self._note(path, "directory\n", "")
            if not self.check:
                here.rmdir()

    def _purge(self, path: str, known: set[str]) -> None:
        """Remove what nobody has put under `path`."""
        here = self._at(path)
        for child in sorted(here.iterdir()) if here.is_dir() else []:
            name = f"{path}/{child.name}"
            if name in known or any(other.startswith(f"{name}/") for other in known):
                continue
            self._note(name, "there, and not known\n", "")
            if self.check:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()

    def _record_file(self, name: str) -> Path:
        return self._at(RECORDS) / f"{name}.json"

    def _record(self, name: str) -> list[str]:
        try:
            return list(json.loads(self._record_file(name).read_bytes()))
        except (FileNotFoundError, ValueError):
            return []

    def _others(self) -> set[str]:
        """The paths of all other sets."""
        names = [file.stem for file in self._at(RECORDS).glob("[!.]*.json")]
        return {path for name in names if name != self.name for path in self._record(name)}

    def _remember(self, paths: list[str]) -> None:
        if self.check or self._record(self.name) == paths:
            return
        here = self._record_file(self.name)
        part = _part(here)
        part.write_text(json.dumps(paths), encoding="utf-8")
        part.replace(here)


def _status(here: Path) -> os.stat_result | None:
    try:
        return here.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _refuse_directory(path: str, status: os.stat_result | None) -> None:
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise Fault(f"{path} is a directory, and something else is to be there")


def _shown(data: bytes | None) -> str:
    if data is None:
        return ""
    if len(data) > DIFF_LIMIT:
        return f"({len(data)} bytes)\n"
    return data.decode("utf-8", errors="replace")


def _part(here: Path) -> Path:
    """Where the new `here` is made, in its own directory, which is made if it is not there."""
    here.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = here.with_name(f".{here.name}{PART}")
    part.unlink(missing_ok=True)
    return part


def unpack(payload: str) -> list[Entry]:
    """The entries in a payload of the action."""
    return list(json.loads(zlib.decompress(base64.b64decode(payload)))) if payload else []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "payload": {"type": "str", "default": "", "no_log": True},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    tree = Tree(module.params["name"], module.params["root"], module.check_mode)
    try:
        if module.params["state"] == "present":
            tree.present(unpack(module.params["payload"]))
        else:
            tree.absent()
    except Fault as fault:
        module.fail_json(msg=str(fault), paths=tree.changed)
    except OSError as fault:
        module.fail_json(
            msg=f"{fault.filename or module.params['name']}: {fault.strerror}", paths=tree.changed
        )
    result: dict[str, Any] = {"changed": bool(tree.changed), "paths": tree.changed}
    if module._diff:
        result["diff"] = tree.diffs
    module.exit_json(**result)


if __name__ == "__main__":
    main()

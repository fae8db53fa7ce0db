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

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

#: Where a node remembers what is in each set.
RECORDS = "/var/lib/underpass/trees"
#: What half-written files are called; the next run overwrites them.
PART = ".underpass-part"
DIFF_LIMIT = 64 * 1024  # bytes


class Fault(Exception):
    """Something on the node stands in the way; the text says what."""


class Tree:
    """One set of paths below `root`. With `check`, only finds out what would be changed."""

    def __init__(self, name, root="/", check=False):
        self.name = name
        self.root = root
        self.check = check
        self.changed = []
        self.diffs = []

    def present(self, entries):
        """Make every entry be there, then remove what the set held before and no longer does."""
        wanted = [entry["path"] for entry in entries]
        before = self._record()
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

    def absent(self):
        """Remove everything that the set holds, innermost first."""
        for path in sorted(set(self._record()) - self._others(), reverse=True):
            self._remove(path)
        if not self.check and os.path.exists(self._record_file()):
            os.unlink(self._record_file())

    def _at(self, path):
        if not path.startswith("/") or ".." in path.split("/"):
            raise Fault(f"{path} is not an absolute path")
        return os.path.join(self.root, path.lstrip("/"))

    def _note(self, path, before, after, secret=False):
        """Count a change and keep what --diff shows of it; of a secret, only that it changes."""
        self.changed.append(path)
        hidden = "(not shown)\n"
        self.diffs.append(
            {
                "before_header": path,
                "after_header": path,
                "before": hidden if secret and before else before,
                "after": hidden.replace("not shown", "new, not shown") if secret and after else after,
            }
        )

    def _directory(self, entry):
        path, mode = entry["path"], int(entry["mode"], 8)
        here = self._at(path)
        status = self._status(here)
        if status is None:
            self._note(path, "", f"directory {mode:04o}\n")
            if not self.check:
                self._make_folders(here)
                os.chmod(here, mode)
        elif not stat.S_ISDIR(status.st_mode):
            raise Fault(f"{path} is in the way: a directory is to be there")
        else:
            self._attributes(path, here, status, mode)

    def _link(self, entry):
        path, target = entry["path"], entry["target"]
        here = self._at(path)
        status = self._status(here)
        before = os.readlink(here) if status and stat.S_ISLNK(status.st_mode) else None
        if before == target:
            return
        self._refuse_directory(path, status)
        self._note(path, f"link to {before}\n" if before else "", f"link to {target}\n")
        if self.check:
            return
        self._make_folders(os.path.dirname(here))
        part = self._part(here)
        os.symlink(target, part)
        os.replace(part, here)

    def _file(self, entry):
        path, mode = entry["path"], int(entry["mode"], 8)
        data = base64.b64decode(entry["data"])
        here = self._at(path)
        status = self._status(here)
        self._refuse_directory(path, status)
        regular = status is not None and stat.S_ISREG(status.st_mode)
        before = self._read(here) if regular else None
        if before == data:
            self._attributes(path, here, status, mode)
            return
        secret = bool(entry.get("secret"))
        self._note(path, self._shown(before), self._shown(data), secret)
        if self.check:
            return
        self._make_folders(os.path.dirname(here))
        part = self._part(here)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
        os.replace(part, here)

    def _attributes(self, path, here, status, mode):
        """Mend mode and owner of something that is otherwise right."""
        owner = (os.geteuid(), os.getegid())
        there = stat.S_IMODE(status.st_mode)
        if there == mode and (status.st_uid, status.st_gid) == owner:
            return
        was = f"mode {there:04o} owner {status.st_uid}:{status.st_gid}\n"
        self._note(path, was, f"mode {mode:04o} owner {owner[0]}:{owner[1]}\n")
        if not self.check:
            os.chown(here, *owner)
            os.chmod(here, mode)

    def _remove(self, path):
        here = self._at(path)
        status = self._status(here)
        if status is None:
            return
        if not stat.S_ISDIR(status.st_mode):
            self._note(path, "there\n", "")
            if not self.check:
                os.unlink(here)
        elif not os.listdir(here):  # what others have put into a directory is theirs
            self._note(path, "directory\n", "")
            if not self.check:
                os.rmdir(here)

    def _purge(self, path, known):
        """Remove what nobody has put under `path`."""
        here = self._at(path)
        for name in sorted(os.listdir(here)) if os.path.isdir(here) else []:
            child = os.path.join(path, name)
            if child in known or any(other.startswith(child + "/") for other in known):
                continue
            self._note(child, "there, and not known\n", "")
            if self.check:
                continue
            if os.path.isdir(self._at(child)) and not os.path.islink(self._at(child)):
                shutil.rmtree(self._at(child))
            else:
                os.unlink(self._at(child))

    @staticmethod
    def _status(here):
        try:
            return os.lstat(here)
        except (FileNotFoundError, NotADirectoryError):
            return None

    @staticmethod
    def _refuse_directory(path, status):
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise Fault(f"{path} is a directory, and something else is to be there")

    @staticmethod
    def _read(here):
        with open(here, "rb") as file:
            return file.read()

    @staticmethod
    def _shown(data):
        if data is None:
            return ""
        if len(data) > DIFF_LIMIT:
            return f"({len(data)} bytes)\n"
        return data.decode("utf-8", errors="replace")

    @staticmethod
    def _make_folders(here):
        os.makedirs(here, mode=0o755, exist_ok=True)

    @staticmethod
    def _part(here):
        part = os.path.join(os.path.dirname(here), f".{os.path.basename(here)}{PART}")
        if os.path.lexists(part):
            os.unlink(part)
        return part

    def _record_file(self, name=None):
        return os.path.join(self._at(RECORDS), f"{name or self.name}.json")

    def _record(self, name=None):
        try:
            return json.loads(self._read(self._record_file(name)))
        except (FileNotFoundError, ValueError):
            return []

    def _others(self):
        """The paths of all other sets."""
        folder = self._at(RECORDS)
        names = [name[:-5] for name in os.listdir(folder)] if os.path.isdir(folder) else []
        return {path for name in names if name != self.name for path in self._record(name)}

    def _remember(self, paths):
        if self.check or self._record() == paths:
            return
        here = self._record_file()
        self._make_folders(os.path.dirname(here))
        part = self._part(here)
        with open(part, "w", encoding="utf-8") as file:
            json.dump(paths, file)
        os.replace(part, here)


def unpack(payload):
    """The entries in a payload of the action."""
    return json.loads(zlib.decompress(base64.b64decode(payload))) if payload else []


def main():
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
    result = {"changed": bool(tree.changed), "paths": tree.changed}
    if module._diff:
        result["diff"] = tree.diffs
    module.exit_json(**result)


if __name__ == "__main__":
    main()

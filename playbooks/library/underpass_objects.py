#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes a cluster's objects be as a folder of manifests says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: underpass_objects
short_description: Applies folders of manifests to the cluster
description:
  - Asks the API server what applying the manifests would change, and applies them if anything would.
    So an object that was changed or removed by hand is found and mended.
  - Fields that others own and the manifests do not name stay as they are.
options:
  folders:
    description: Folders with the manifests, applied in their order, removed in it too.
    type: list
    elements: path
    required: true
  kubeconfig:
    description: Credential to use.
    type: path
    required: true
  seconds:
    description: For how long what the API server does not take yet is tried again.
    type: int
    default: 0
  state:
    description: C(absent) removes the objects of those folders that are there, and the folders.
    type: str
    choices: [present, absent]
    default: present
author:
  - Underpass
"""

EXAMPLES = r"""
- name: Apply the cluster's own objects
  underpass_objects:
    folders: [/etc/kubernetes/addons]
    kubeconfig: /etc/kubernetes/super-admin.kubeconfig
"""

RETURN = r"""
objects:
  description: The objects that were created, changed or removed, as C(kind/name).
  type: list
  elements: str
  returned: success
"""

import re  # noqa: E402
import shutil  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible.module_utils.underpass_turn import take_or_fail  # noqa: E402

KUBECTL = "/opt/underpass/current/kubernetes/bin/kubectl"
SAME, DIFFERENT = 0, 1  # statuses of `kubectl diff`
PAUSE = 1.0
#: How long kubectl waits for an answer. Left alone it gives the API server 32 s for what it knows of its
#: objects, which is not enough on the slowest processors that are emulated.
ANSWER = "300s"

#: `kubectl diff` compares files named GROUP.VERSION.KIND.NAMESPACE.NAME.
_COMPARED = re.compile(r"^diff .* \S+/([^/\s]+)$", re.MULTILINE)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "path", "required": True},
            "kubeconfig": {"type": "path", "required": True},
            "seconds": {"type": "int", "default": 0},
            "state": {"choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    take_or_fail(module)
    kubectl = [KUBECTL, f"--kubeconfig={module.params['kubeconfig']}", f"--request-timeout={ANSWER}"]
    make = remove if module.params["state"] == "absent" else apply
    objects: list[str] = []
    differences = ""
    for folder in module.params["folders"]:
        named, text = make(module, kubectl, folder)
        objects += named
        differences += text
    result = {"changed": bool(objects), "objects": objects}
    if module._diff:
        result["diff"] = {"prepared": differences}
    module.exit_json(**result)


def apply(module: AnsibleModule, kubectl: list[str], folder: str) -> tuple[list[str], str]:
    """Make the objects of `folder` be as it says; those that were not, and the difference as text."""
    if module.check_mode and not (Path(folder).is_dir() and Path(KUBECTL).exists()):
        return [folder], ""
    common = ["--server-side", "--force-conflicts", "--field-manager=underpass", f"--filename={folder}"]
    deadline = time.monotonic() + module.params["seconds"]
    while True:
        status, out, err = module.run_command([*kubectl, "diff", *common])
        taken = status == SAME or (status == DIFFERENT and bool(out.strip()))
        if taken and status == DIFFERENT and not module.check_mode:
            applied, _, err = module.run_command([*kubectl, "apply", *common])
            taken = applied == 0
        if taken:
            return sorted(set(_COMPARED.findall(out))) if status == DIFFERENT else [], out
        if module.check_mode and module.params["seconds"]:  # it may need what was not made before it
            return [folder], ""
        if time.monotonic() >= deadline:
            module.fail_json(
                msg=f"the API server does not take the manifests of {folder}: {err.strip()[-1000:]}"
            )
        time.sleep(PAUSE)


def remove(module: AnsibleModule, kubectl: list[str], folder: str) -> tuple[list[str], str]:
    """Remove the objects of `folder` and the folder itself, if there is such a one."""
    if not Path(folder).is_dir():
        return [], ""
    if module.check_mode:
        return [folder], ""
    command = [*kubectl, "delete", "--ignore-not-found", "--output=name", f"--filename={folder}"]
    status, out, err = module.run_command(command)
    if status:
        module.fail_json(msg=f"the objects of {folder} are not removed: {err.strip()[-1000:]}")
    shutil.rmtree(folder)
    return [folder, *out.split()], ""


if __name__ == "__main__":
    main()

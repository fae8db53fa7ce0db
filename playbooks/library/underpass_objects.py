#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes a cluster's objects be as a folder of manifests says."""

from __future__ import annotations

DOCUMENTATION = r"""
module: underpass_objects
short_description: Applies a folder of manifests to the cluster
description:
  - Asks the API server what applying the manifests would change, and applies them if anything would.
    So an object that was changed or removed by hand is found and mended.
  - Fields that others own and the manifests do not name stay as they are.
options:
  folder:
    description: Folder with the manifests.
    type: path
    required: true
  kubeconfig:
    description: Credential to use.
    type: path
    required: true
author:
  - Underpass
"""

EXAMPLES = r"""
- name: Apply the cluster's own objects
  underpass_objects:
    folder: /etc/kubernetes/addons
    kubeconfig: /etc/kubernetes/super-admin.kubeconfig
"""

RETURN = r"""
objects:
  description: The objects that were created or changed, as C(kind/name).
  type: list
  elements: str
  returned: success
"""

import re  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

KUBECTL = "/opt/underpass/current/kubernetes/bin/kubectl"
SAME, DIFFERENT = 0, 1  # statuses of `kubectl diff`

#: `kubectl diff` compares files named GROUP.VERSION.KIND.NAMESPACE.NAME.
_COMPARED = re.compile(r"^diff .* \S+/([^/\s]+)$", re.MULTILINE)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "kubeconfig": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    folder, kubeconfig = module.params["folder"], module.params["kubeconfig"]
    if module.check_mode and not (Path(folder).is_dir() and Path(KUBECTL).exists()):
        module.exit_json(changed=True, objects=[])
    common = ["--server-side", "--force-conflicts", "--field-manager=underpass", f"--filename={folder}"]
    kubectl = [KUBECTL, f"--kubeconfig={kubeconfig}"]
    status, out, err = module.run_command([*kubectl, "diff", *common])
    if status not in (SAME, DIFFERENT) or (status == DIFFERENT and not out.strip()):
        module.fail_json(msg=f"the API server does not take the manifests of {folder}: {err.strip()[-1000:]}")
    result = {"changed": status == DIFFERENT, "objects": sorted(set(_COMPARED.findall(out)))}
    if module._diff:
        result["diff"] = {"prepared": out}
    if status == DIFFERENT and not module.check_mode:
        status, out, err = module.run_command([*kubectl, "apply", *common])
        if status:
            module.fail_json(msg=f"kubectl apply: {err.strip()[-1000:]}", objects=result["objects"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()

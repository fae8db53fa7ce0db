#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Makes containerd have the container images of an artifact."""

from __future__ import annotations

DOCUMENTATION = r"""
module: underpass_images
short_description: Imports the image archives of artifacts into containerd
description:
  - An image that was imported is labelled with the artifact that it came from. So another build of an
    image under the same name is noticed, and so is an image that was removed by hand.
options:
  folders:
    description: The artifacts' folders, each with C(index.json), which maps archives to names of images.
    type: list
    elements: path
    required: true
  namespace:
    description: containerd's namespace.
    type: str
    default: k8s.io
author:
  - Underpass
"""

EXAMPLES = r"""
- name: Import the lab's images
  underpass_images:
    folders: [/opt/underpass/current/images]
"""

RETURN = r"""
imported:
  description: Names of the images that were imported, or would be.
  type: list
  elements: str
  returned: success
"""

import json  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible.module_utils.underpass_turn import take_or_fail  # noqa: E402

LABEL = "underpass.dev/artifact"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "path", "required": True},
            "namespace": {"type": "str", "default": "k8s.io"},
        },
        supports_check_mode=True,
    )
    take_or_fail(module)
    imported = [
        name for folder in module.params["folders"] for name in import_all(module, Path(folder).resolve())
    ]
    module.exit_json(changed=bool(imported), imported=imported)


def import_all(module: AnsibleModule, folder: Path) -> list[str]:
    """Import what containerd does not have of the artifact at `folder`; the images' names."""
    ctr = ["ctr", "--namespace", module.params["namespace"], "images"]
    index: dict[str, str] = {}
    try:
        index = json.loads((folder / "index.json").read_bytes())
    except (OSError, ValueError) as fault:
        if module.check_mode:  # before the first run there is no link to the artifact
            return [folder.name]
        module.fail_json(msg=f"{folder} is no artifact of images: {fault}")
    status, out, err = module.run_command([*ctr, "list", "--quiet", f'labels."{LABEL}"=={folder.name}'])
    if status and not module.check_mode:
        module.fail_json(msg=f"containerd does not list its images: {err.strip()}")
    there = set(out.split())
    missing = {archive: name for archive, name in index.items() if name not in there}
    for archive, name in {} if module.check_mode else missing.items():
        for command in (
            [*ctr, "import", str(folder / archive)],
            [*ctr, "label", name, f"{LABEL}={folder.name}"],
        ):
            status, out, err = module.run_command(command)
            if status:
                module.fail_json(msg=f"{' '.join(command)}: {(err or out).strip()[-500:]}")
    return sorted(missing.values())


if __name__ == "__main__":
    main()

#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Renders Istio's charts into a folder of manifests."""

from __future__ import annotations

DOCUMENTATION = r"""
module: underpass_istio_manifests
short_description: Renders Istio's own charts with values
description:
  - Runs C(istioctl manifest generate). The file says what it was made from and carries a hash of itself, so
    that a second run need not render, and a file that was changed by hand is found.
options:
  istio:
    description: The artifact C(istio), or a link to it.
    type: path
    required: true
  values:
    description: A file that istioctl takes as C(--filename).
    type: path
    required: true
  settings:
    description: What istioctl takes as C(--set), by name.
    type: dict
    default: {}
  folder:
    description: Where C(istio.yaml) goes; made if it is not there.
    type: path
    required: true
author:
  - Underpass
"""

EXAMPLES = r"""
- name: Render Istio's manifests
  underpass_istio_manifests:
    istio: /opt/underpass/current/istio
    values: /etc/kubernetes/istio/values.yaml
    folder: /etc/kubernetes/istio/install
"""

RETURN = r"""
file:
  description: The manifests.
  type: str
  returned: success
"""

import hashlib  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible.module_utils.underpass_turn import take_or_fail  # noqa: E402


def stamp(inputs: str, manifests: str) -> str:
    """The first line of the file: what it was made from, and what it then was."""
    return f"# inputs {inputs} manifests {hashlib.sha256(manifests.encode()).hexdigest()}"


def as_made(text: str, inputs: str) -> bool:
    """Whether `text` is what was rendered from `inputs`, unchanged."""
    first, _, manifests = text.partition("\n")
    return first == stamp(inputs, manifests)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "istio": {"type": "path", "required": True},
            "values": {"type": "path", "required": True},
            "settings": {"type": "dict", "default": {}},
            "folder": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    take_or_fail(module)
    istio = Path(module.params["istio"]).resolve()
    values, settings = Path(module.params["values"]), module.params["settings"]
    target = Path(module.params["folder"]) / "istio.yaml"
    if module.check_mode and not values.exists():
        module.exit_json(changed=True, file=str(target))
    made_from = [istio.name, values.read_text(encoding="utf-8"), settings]
    inputs = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    there = target.read_text(encoding="utf-8") if target.exists() else ""
    changed = not as_made(there, inputs)
    if changed and not module.check_mode:
        command = [str(istio / "bin" / "istioctl"), "manifest", "generate", f"--filename={values}"]
        command.append(f"--manifests={istio / 'share' / 'manifests'}")
        command += [f"--set={name}={value}" for name, value in sorted(settings.items())]
        status, manifests, errors = module.run_command(command)
        if status or not manifests.strip():
            module.fail_json(msg=f"istioctl renders no manifests: {errors.strip()[-1000:]}")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = target.with_name(".istio.yaml")
        draft.write_text(f"{stamp(inputs, manifests)}\n{manifests}", encoding="utf-8")
        draft.replace(target)
    module.exit_json(changed=changed, file=str(target))


if __name__ == "__main__":
    main()

"""Making a lab ready for plain `vagrant up`: all that the Vagrantfile refers to, and the way to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lab.errors import ExitCode, die
from lab.providers.base import NodeState
from lab.providers.vagrant.disks import Disks
from lab.providers.vagrant.provider import Vagrant
from lab.provision import write_variables
from lab.render import Rendered
from lab.store import Artifact


def for_vagrant(lab: Rendered, artifacts: Mapping[str, Artifact], checkout: Path) -> None:
    """Make disks and networks of `lab`, and let `.vagrant` in the checkout lead to what Vagrant keeps."""
    host, disks = Vagrant(lab), Disks(lab)
    image = artifacts.get(host.image)
    if image is None:
        die(
            f"what the virtual machines are made from is not in the artifact store: {host.image}",
            hint="`lab build --provider vagrant` builds what is missing"
            + (f", and `lab build {host.image}` what this lab asks for" if host.image != "vm-box" else ""),
            code=ExitCode.ARTIFACT,
        )
    host.create(image.path, image.path.parent)
    for node in lab.nodes:
        if host.status(node) is not NodeState.RUNNING:
            disks.note_start(node.name)  # Vagrant starts them with what is there now
    write_variables(lab)
    link = checkout / ".vagrant"
    if link.is_symlink() or not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(disks.dot)
        return
    die(
        f"{link} is in the way: Vagrant keeps another lab in it",
        hint="vagrant destroy, remove it, then lab render again",
        code=ExitCode.HOST,
    )

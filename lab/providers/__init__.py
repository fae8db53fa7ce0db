"""Providers of nodes, by the name that a lab file gives."""

from __future__ import annotations

from lab.errors import ExitCode, die
from lab.providers.base import Provider
from lab.providers.nspawn import Nspawn
from lab.providers.vagrant import Vagrant
from lab.render import Rendered


def provider(lab: Rendered) -> Provider:
    """The provider of `lab`'s nodes."""
    known: dict[str, type[Provider]] = {"nspawn": Nspawn, "vagrant": Vagrant}
    if lab.provider not in known:
        die(
            f"there is no provider {lab.provider}",
            hint=f"known: {', '.join(known)}",
            code=ExitCode.LAB_FILE,
        )
    return known[lab.provider](lab)

"""Providers of nodes, by the name that a lab file gives."""

from __future__ import annotations

from lab.errors import ExitCode, die
from lab.providers.base import Provider
from lab.render import Rendered


def provider(lab: Rendered) -> Provider:
    """The provider of `lab`'s nodes.

    Imported when it is asked for: their libraries take longer to load than most commands to run.
    """
    if lab.provider not in ("nspawn", "vagrant"):
        die(f"there is no provider {lab.provider}", hint="known: nspawn, vagrant", code=ExitCode.LAB_FILE)
    if lab.provider == "vagrant":
        from lab.providers.vagrant import Vagrant

        return Vagrant(lab)
    from lab.providers.nspawn import Nspawn

    return Nspawn(lab)

"""Providers of nodes, by the name that a lab file gives."""

from __future__ import annotations

from lab.errors import ExitCode, die
from lab.providers.base import Provider
from lab.render import Rendered


def provider(lab: Rendered) -> Provider:
    """The provider of `lab`'s nodes."""
    if lab.provider == "nspawn":
        from lab.providers.nspawn import Nspawn

        return Nspawn(lab)
    die(f"there is no provider {lab.provider}", hint="known: nspawn", code=ExitCode.LAB_FILE)

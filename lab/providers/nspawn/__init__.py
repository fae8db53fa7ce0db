"""Nodes as systemd-nspawn containers on the host's kernel."""

from lab.providers.nspawn.provider import Nspawn

__all__ = ["Nspawn"]

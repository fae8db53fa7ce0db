"""Nodes as virtual machines, by Vagrant and libvirt."""

from lab.providers.vagrant.provider import Vagrant

__all__ = ["Vagrant"]

"""What of the lab is there already, so that a lab that is up is not asked for its share a second time."""

from __future__ import annotations

from lab.errors import LabError
from lab.providers import provider
from lab.providers.base import NodeState
from lab.render import Rendered


def running(lab: Rendered) -> int:
    """How many of the lab's nodes run now; none where the host cannot even be asked."""
    try:
        host = provider(lab)
        return sum(host.status(node) is NodeState.RUNNING for node in lab.nodes)
    except (LabError, OSError):
        return 0

"""The order of what is done to a lab as a whole."""

from __future__ import annotations

import pytest

from lab import lifecycle, render
from lab.labfile import parse
from lab.render import RenderedNode
from lab.steps import Steps

LAB = """\
apiVersion: underpass.dev/v1
kind: Lab
id: order
nodes:
  - {name: first, roles: [worker]}
  - {name: plane, roles: [control-plane, worker]}
  - {name: last, roles: [worker]}
"""


class Written:
    """A provider that writes down which node it was told to stop."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def stop(self, node: RenderedNode, *, force: bool = False) -> int:
        self.stopped.append(node.name)
        return 1


def test_a_stop_begins_with_the_workers_and_ends_with_the_control_plane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Written()
    monkeypatch.setattr(lifecycle, "provider", lambda lab: host)
    lab, _ = parse(LAB)
    assert lab is not None
    assert lifecycle.stop(render.render(lab), Steps()) == 3
    assert sorted(host.stopped[:2]) == ["first", "last"]
    assert host.stopped[2] == "plane"

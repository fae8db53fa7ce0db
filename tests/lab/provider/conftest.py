"""A lab of bare nodes under its own id, made by a provider and by nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import builds, keys, ssh
from lab import render as rendering
from lab.labfile import LabFile
from lab.lifecycle import on_nodes
from lab.providers import provider as make_provider
from lab.providers.base import NodeState, Provider
from lab.render import Rendered, RenderedNode
from lab.steps import Steps, side_by_side
from tests.lab.vms.conftest import HYPERVISOR, needs_machines

#: Machines are slow where processors are emulated: where they are asked for.
PROVIDERS = ["nspawn", *(["vagrant"] if os.environ.get("UNDERPASS_VMS") == "1" else [])]

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci") + "-bare"


@pytest.fixture(scope="session")
def image(bare: Rendered) -> Path:
    """What the provider makes nodes from, built or taken from the store."""
    name = make_provider(bare).image
    return builds.build_all(Steps(), only={name})[name].path


ONE: dict[str, Any] = {"name": "one", "roles": ["control-plane", "worker"]}
TWO: dict[str, Any] = {"name": "two", "roles": ["worker"], "cpus": 1.5, "memory": "1GiB"}


def rendered(provider: str, *nodes: dict[str, Any]) -> Rendered:
    """The bare lab as a lab file with these nodes would have it."""
    file = {"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": LAB_ID, "provider": provider}
    machines = {"machines": {"hypervisor": HYPERVISOR}} if provider == "vagrant" else {}
    return rendering.render(LabFile.model_validate({**file, **machines, "nodes": nodes}))


@pytest.fixture(scope="session", params=PROVIDERS)
def bare(request: pytest.FixtureRequest) -> Iterator[Rendered]:
    """A lab with keys and rendered files, and nothing made."""
    lab = rendered(request.param, ONE, TWO)
    if request.param == "vagrant":
        needs_machines(lab)
    make_provider(lab).destroy()
    lab.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys.ensure(lab)
    artifacts = builds.build_all(Steps(), only={"images"})
    rendering.write(lab, "", on_nodes({"images": artifacts["images"]}))
    ssh.SOCKETS.mkdir(mode=0o700, exist_ok=True)
    try:
        yield lab
    finally:
        make_provider(lab).destroy()
        shutil.rmtree(lab.folder)


@pytest.fixture
def provider(bare: Rendered) -> Provider:
    """The provider of the bare lab, as a new process would see it; nothing is assumed to be made."""
    return make_provider(bare)


@pytest.fixture
def made(provider: Provider, image: Path) -> Provider:
    """All nodes made; they may run or not."""
    provider.create(image, image.parent)
    return provider


@pytest.fixture
def running(made: Provider) -> Provider:
    """All nodes run."""
    side_by_side(made.start, made.lab.nodes)
    return made


@pytest.fixture
def stopped(made: Provider) -> Provider:
    """All nodes made and powered off."""
    side_by_side(made.stop, made.lab.nodes)
    return made


def on(provider: Provider, node: RenderedNode, command: str, *, ok: bool = True) -> str:
    """What a shell command on the node prints; with `ok` it must succeed."""
    statuses = (0,) if ok else range(256)
    return ssh.on_node(provider.lab, node, ["sh", "-c", command], ok=statuses).stdout.strip()


def states(provider: Provider) -> set[NodeState]:
    """The states of all nodes."""
    return {provider.status(node) for node in provider.lab.nodes}

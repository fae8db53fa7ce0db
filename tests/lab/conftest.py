"""The lab under test: brought up by the real `lab` command under its own id, and taken down again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra

from lab import builds, images, report
from lab import render as rendering
from lab.cluster import Cluster
from lab.labfile import parse
from lab.paths import ROOT
from lab.providers import provider
from lab.render import Rendered, RenderedNode
from tests.lab.command import LabCommand
from tests.lab.pods import Pods
from tests.lab.waiting import slow_down

pytest_plugins: list[str] = []

LAB_ID = os.environ.get("UNDERPASS_TEST_LAB", "ci")
LAB_FILE = f"""\
apiVersion: underpass.dev/v1
kind: Lab
id: {LAB_ID}
istio:
  enabled: true
"""

_rendered = pytest.StashKey[Rendered]()
#: In a test's stash: whether it failed, so far.
FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("lab.verify.plugin"):
        config.pluginmanager.import_plugin("lab.verify.plugin")


def _lab_of(config: pytest.Config) -> Rendered:
    """The lab under test, from its rendered files or from the suite's own lab file."""
    if _rendered not in config.stash:
        chosen = config.getoption("--lab")
        if chosen:
            lab = rendering.read(chosen)
            if lab is None:
                raise pytest.UsageError(f"there is no lab {chosen} here")
        else:
            parsed, faults = parse(LAB_FILE)
            if parsed is None:
                raise pytest.UsageError(f"the suite's lab file: {faults}")
            lab = rendering.render(parsed)
        config.stash[_rendered] = lab
    return config.stash[_rendered]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a lab that takes longer, so may a test."""
    if not config.getoption("--lab"):
        return
    limit = float(config.getini("timeout")) * provider(_lab_of(config)).slowness
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "node" in metafunc.fixturenames:
        nodes = _lab_of(metafunc.config).nodes
        metafunc.parametrize("node", nodes, ids=[node.name for node in nodes], scope="session")


@pytest.fixture(scope="session")
def lab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab file of the lab under test."""
    path = tmp_path_factory.mktemp("lab") / "lab.yaml"
    path.write_text(LAB_FILE)
    return path


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest, lab_file: Path) -> Iterator[Rendered]:
    """The lab under test, up. Taken down at the end, also after a failure, unless it was given."""
    lab = _lab_of(request.config)
    if request.config.getoption("--lab"):
        slow_down(provider(lab).slowness)
        yield lab
        return
    command = LabCommand(lab_file)
    command("down", "--progress=none")
    # Registered before, so that a lab that does not come up goes too, and not before its report is made.
    request.addfinalizer(lambda: command.check("down"))
    command.check("up", "--progress=plain")
    yield lab


@pytest.fixture(scope="session")
def command(lab: Rendered, lab_file: Path, request: pytest.FixtureRequest) -> LabCommand:
    """The `lab` command on the lab under test."""
    chosen = request.config.getoption("--lab")
    return LabCommand(lab.folder / "lab.yaml" if chosen else lab_file)


@pytest.fixture
def host(lab: Rendered, node: RenderedNode) -> Any:
    """testinfra's view of one node, over ssh with the lab's own keys."""
    return connect(lab, node)


@pytest.fixture
def control_plane(lab: Rendered) -> Any:
    """testinfra's view of the control plane's node."""
    return connect(lab, lab.control_plane)


@pytest.fixture(scope="session")
def cluster(lab: Rendered) -> Cluster:
    """The lab's Kubernetes."""
    return Cluster(lab, builds.locate()["kubernetes"].path / "bin")


@pytest.fixture(scope="session")
def pods(lab: Rendered, cluster: Cluster) -> Iterator[Pods]:
    """Pods a-0, a-1 on the first node and b-0, b-1 on the second, in a namespace of their own."""
    pods = Pods(cluster, "verify", toolbox())
    pods.create()
    for node, letter in zip(lab.nodes, "ab", strict=False):
        for number in range(2):
            pods.run(f"{letter}-{number}", node.name, labels={"set": "servers"})
    try:
        pods.ready()
        yield pods
    finally:
        pods.remove()


def image_called(word: str) -> str:
    """The full name of the lab's own image called `word`, which every node has."""
    return images.own()[word]


def toolbox() -> str:
    """The name of the lab's own image for test pods."""
    return image_called("toolbox")


def connect(lab: Rendered, node: RenderedNode) -> Any:
    """A testinfra host for `node`."""
    return testinfra.get_host(f"ssh://{node.name}", ssh_config=str(lab.folder / "ssh_config"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """At a lab test's failure, archive the lab as it is, once for each test."""
    outcome: pytest.TestReport = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or outcome.failed
    if outcome.failed and call.when in ("setup", "call") and "lab" in getattr(item, "fixturenames", ()):
        folder = ROOT / "reports"
        try:
            archive = report.write(_lab_of(item.config), folder)
            outcome.sections.append(("lab report", str(archive)))
        except Exception as fault:
            outcome.sections.append(("lab report", f"could not be made: {fault}"))
    return outcome


Evidence = Callable[[object], None]

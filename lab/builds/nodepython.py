"""The nodes' Python packages: one tree of wheels for the nodes' Python, each pinned by its hash."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.builds import wheels
from lab.builds.contained import enclosed
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode
from lab.paths import ROOT
from lab.run import run
from lab.store import Building, Recipe

LOCK = ROOT / "requirements" / "node.lock"
COMPILE = Path(__file__).parent / "node" / "compile-python"

#: Debian 13's.
PYTHON = "3.13"


def recipe(node_image: Recipe) -> Recipe:
    return Recipe(
        name="node-python",
        title="The nodes' Python packages",
        inputs={
            "python": PYTHON,
            "glibc": list(wheels.GLIBC),
            "lock": tree_digest(LOCK),
            "code": tree_digest(Path(__file__), Path(wheels.__file__), COMPILE),
            "node-image": node_image.key,
        },
        build=_build,
        needs=("node-image",),
        space=1 << 30,
    )


def _build(building: Building) -> None:
    site = building.folder / "site"
    building.step.say("fetching wheels")
    options = ["--no-deps", "--no-compile", "--require-hashes", *wheels.target(PYTHON, wheels.GLIBC)]
    wheels.pip(["install", *options, "--target", site, "--requirement", LOCK], building.scratch)
    # Commands of the packages: their first line names the Python that ran pip.
    shutil.rmtree(site / "bin", ignore_errors=True)
    building.step.say("compiling for the nodes' Python")
    # The tree is read-only on a node: byte code that is not there now would never be.
    shown = f"/opt/underpass/store/{building.name}-{building.key}/site"
    image = building.needs["node-image"].path / "rootfs"
    run(enclosed([COMPILE, image, site, shown]), code=ExitCode.ARTIFACT)
    building.tools["pip"] = wheels.version()
    building.facts["packages"] = dict(
        sorted(path.name.removesuffix(".dist-info").split("-", 1) for path in site.glob("*.dist-info"))
    )

"""The datapath's programs, compiled for the box's kernel: on emulated processors LLVM takes minutes.

A node whose kernel, compiler or source is another passes them over and compiles, as containers do.
"""

from __future__ import annotations

from pathlib import Path

from lab.builds.contained import enclosed
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode
from lab.paths import ROOT
from lab.run import run
from lab.store import Building, Recipe

COMPILE = Path(__file__).parent / "node" / "compile-programs"
SOURCE = ROOT / "datapath"


def recipe(node_image: Recipe, box: Recipe) -> Recipe:
    return Recipe(
        name="node-programs",
        title="The datapath's programs, compiled for virtual machines",
        inputs={
            "node-image": node_image.key,
            "vm-box": box.key,
            "code": tree_digest(Path(__file__), COMPILE, *_source()),
        },
        build=_build,
        needs=("node-image", "vm-box"),
        space=1 << 28,
        provider="vagrant",
    )


def _source() -> list[Path]:
    """What the loader is made of: its own code and the programs'."""
    return sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".c", ".h"))


def _build(building: Building) -> None:
    building.step.say("compiling")
    root = building.needs["node-image"].path / "rootfs"
    kernel = building.needs["vm-box"].path / "kernel.btf"
    argv = [COMPILE, root, ROOT, kernel, building.folder, building.scratch]
    run(enclosed(argv), code=ExitCode.ARTIFACT)

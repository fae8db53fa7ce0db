"""Kernels as packages: what a machine whose own falls short is given, and one that does fall short.

An artifact's `index.json` maps a series (6.12) to its release and to the files of its packages. A node
installs from that folder, which it reads without a network; the store's manifest vouches for the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from lab.builds import packages as debian
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.store import Building, Recipe

NAME = "kernels"
OLD = "old-kernel"
#: Debian 12, whose kernel is older than nodes need: what the role `kernel` is proved with.
OLD_SUITE = "bookworm"
IMAGE, HEADERS = "linux-image-cloud-amd64", "linux-headers-cloud-amd64"
_RELEASE = re.compile(r"linux-image-((\d+\.\d+)\.\S+-cloud-amd64)_")
_NEEDED = re.compile(r"^ *Depends: (linux-(?:image|headers)-\S+)$", re.MULTILINE)


def recipe() -> Recipe:
    suite = lock().versions["debian"]
    return _recipe(NAME, f"Kernels for virtual machines (Debian {suite})", suite, (IMAGE, HEADERS))


def old_recipe() -> Recipe:
    return _recipe(OLD, "A kernel that falls short", OLD_SUITE, (IMAGE,), for_tests=True)


def _recipe(
    name: str, title: str, suite: str, packages: tuple[str, ...], *, for_tests: bool = False
) -> Recipe:
    def build(building: Building) -> None:
        building.step.say("fetching packages")
        _download(suite, packages, building.folder, building.scratch)
        index = _index(building.folder)
        building.facts["kernels"] = index
        (building.folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    return Recipe(
        name=name,
        title=title,
        inputs={
            "suite": suite,
            "packages": list(packages),
            "files": tree_digest(Path(__file__), Path(debian.__file__)),
        },
        build=build,
        space=1 << 28,
        provider="vagrant",
        for_tests=for_tests,
    )


def _index(folder: Path) -> dict[str, dict[str, object]]:
    """Series -> release, the image's file, the headers' files."""
    images = [path.name for path in folder.glob("linux-image-*.deb")]
    found = _RELEASE.match(images[0]) if len(images) == 1 else None
    if found is None:
        die(f"not one kernel was fetched, but {images or 'none'}", code=ExitCode.ARTIFACT)
    headers = sorted(path.name for path in folder.glob("linux-headers-*.deb"))
    return {found[2]: {"release": found[1], "image": images[0], "headers": headers}}


def _download(suite: str, packages: Sequence[str], folder: Path, scratch: Path) -> None:
    """Fetch the packages that the metapackages `packages` of `suite` stand for, and no more."""
    mirror = debian.Mirror(suite, scratch)
    wanted = [name for package in packages for name in _needs(mirror, package)]
    # Headers are in two packages; the second one's name ends so.
    wanted += [name for one in wanted for name in _needs(mirror, one) if name.endswith("-common")]
    mirror.download(wanted, folder)


def _needs(mirror: debian.Mirror, package: str) -> list[str]:
    """The kernel's packages that `package` depends on."""
    return _NEEDED.findall(mirror.depends(package))

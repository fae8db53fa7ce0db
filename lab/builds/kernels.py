"""Kernels as packages: what a machine whose own falls short is given, and one that does fall short.

An artifact's `index.json` maps a series (6.12) to its release and to the files of its packages. A node
installs from that folder, which it reads without a network; the store's manifest vouches for the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.builds import apt
from lab.builds.inputs import tree_digest
from lab.builds.registry import asked
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.run import run
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
        inputs={"suite": suite, "packages": list(packages), "files": tree_digest(Path(__file__))},
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
    state = scratch / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    sources, settings = scratch / "sources.list", scratch / "apt.conf"
    for file in (sources, settings):  # an address may carry a password
        file.touch(mode=0o600)
    lines = apt.source_list(suite)
    if not lines:
        die("the host's apt has no Debian mirror that http reaches", code=ExitCode.HOST)
    sources.write_text(lines, encoding="utf-8")
    settings.write_text(
        f'{apt.host_settings()}Dir::Etc::SourceList "{sources}";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{state}/lists";\nDir::Cache "{state}/cache";\nAPT::Sandbox::User "root";\n',
        encoding="utf-8",
    )
    env = {"APT_CONFIG": str(settings)}
    with asked("the Debian mirror", f"see that the host's mirror carries Debian {suite}"):
        run(["apt-get", "-qq", "update"], env=env, code=ExitCode.ARTIFACT)
        wanted = [name for package in packages for name in _needs(package, env)]
        # Headers are in two packages; the second one's name ends so.
        wanted += [name for one in wanted for name in _needs(one, env) if name.endswith("-common")]
        run(["apt-get", "-qq", "download", *wanted], cwd=folder, env=env, code=ExitCode.ARTIFACT)


def _needs(package: str, env: Mapping[str, str]) -> list[str]:
    """The kernel's packages that `package` depends on."""
    shown = run(["apt-cache", "depends", package], env=env, quiet=True, code=ExitCode.ARTIFACT).stdout
    return _NEEDED.findall(shown)

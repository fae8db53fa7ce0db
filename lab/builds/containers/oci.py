"""Making image archives with buildah: no daemon, no registry, the same bytes of the same parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.builds import apt
from lab.builds.contained import enclosed
from lab.errors import ExitCode
from lab.run import run
from lab.store import Artifact, Building

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Image:
    """An image: its short and full names, and what fills the folder that its Containerfile copies from.

    `file` is the Containerfile's folder below this one, the short name if empty; `arguments` are the
    values of its ARGs. An image `FROM` another names one that the same artifact made before; one that is
    there for others alone is not `kept`.
    """

    name: str
    reference: str
    fill: Callable[[Path, Building], None]
    file: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    kept: bool = True


def make_all(images: Sequence[Image], building: Building) -> None:
    """Make the images in their order, and the index that maps each archive to its image's full name."""
    for image in images:
        building.step.say(f"building {image.reference}")
        _make(image, building)
    index = {f"{image.name}.tar": image.reference for image in images if image.kept}
    (building.folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    building.facts["images"] = index
    building.tools["buildah"] = run(["buildah", "--version"]).stdout.split()[2]


def nothing(_context: Path, _building: Building) -> None:
    """What an image is filled with that adds only settings to another."""


def copy_program(artifact: Artifact, path: str, target: Path) -> None:
    """Copy a program out of an artifact."""
    target.write_bytes((artifact.path / path).read_bytes())
    target.chmod(0o755)


def debian(context: Path, building: Building, name: str, packages: Sequence[str]) -> None:
    """Make `rootfs.tar`, a small Debian with `packages`, in `context`; its versions become facts."""
    root = building.scratch / name
    apt.bootstrap(root, building.scratch, packages)
    building.facts[name] = apt.versions(root)
    # An archive, as COPY of a folder would give every file to root.
    options = ["--create", "--numeric-owner", "--xattrs", "--sort=name", "--exclude=./dev/*"]
    run(
        ["tar", *options, f"--file={context / 'rootfs.tar'}", f"--directory={root}", "."],
        code=ExitCode.ARTIFACT,
    )


def _make(image: Image, building: Building) -> None:
    context = building.scratch / f"{image.name}-context"
    context.mkdir()
    image.fill(context, building)
    buildah = [
        "buildah",
        "--storage-driver=vfs",
        f"--root={building.scratch / 'storage'}",
        f"--runroot={building.scratch / 'run'}",
    ]
    # Nothing is fetched, so there is nothing whose signature a policy of the host could ask for.
    policy = f"--signature-policy={FOLDER / 'policy.json'}"
    file = FOLDER / (image.file or image.name) / "Containerfile"
    build = [policy, "--isolation=chroot", "--format=oci", "--timestamp=0", "--pull=never"]
    build += [f"--build-arg={name}={value}" for name, value in image.arguments.items()]
    commands = [[*buildah, "bud", *build, f"--tag={image.reference}", f"--file={file}", str(context)]]
    if image.kept:
        archive = f"oci-archive:{building.folder / image.name}.tar:{image.reference}"
        commands.append([*buildah, "push", policy, image.reference, archive])
    for argv in commands:
        run(
            enclosed(argv),
            env={"TMPDIR": str(building.scratch)},
            hint="`make setup` installs buildah; the lines above are its own",
            code=ExitCode.ARTIFACT,
        )

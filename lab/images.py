"""Container images on a lab's nodes: those that it brings, and a user's own."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import builds, ssh
from lab.errors import ExitCode, die
from lab.render import Rendered, RenderedNode
from lab.steps import current_step, side_by_side

_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


def own() -> dict[str, str]:
    """The images that nodes carry from their start: short name -> full name."""
    artifact = builds.locate().get("images")
    if artifact is None:
        die(
            "the images are not in the artifact store",
            hint="`lab build images` makes them",
            code=ExitCode.ARTIFACT,
        )
    index: dict[str, str] = json.loads((artifact.path / "index.json").read_bytes())
    return {archive.removesuffix(".tar"): name for archive, name in index.items()}


def load(lab: Rendered, source: Path) -> list[str]:
    """Import `source` into containerd on every node; returns the names of the images.

    `source` is an archive as `docker save`, `podman save` or `buildah push oci-archive:` write it,
    an OCI layout folder, or a folder of archives.
    """
    names: list[str] = []
    step = current_step()
    with _archives(source) as archives:
        found = [(archive, names_in(archive)) for archive in archives]
        for archive, inside in found:
            if step:
                step.say(", ".join(inside))

            def one(node: RenderedNode, archive: Path = archive) -> int:
                command = ["ctr", "-n", "k8s.io", "images", "import", "-"]
                ssh.on_node(lab, node, command, stdin=archive, timeout=600)
                return 1

            side_by_side(one, lab.nodes)
            names += inside
    return names


def names_in(archive: Path) -> list[str]:
    """The names that an image archive carries; refuses a file that is none, or has no name."""
    what = "an image archive as `docker save` or `buildah push IMAGE oci-archive:FILE:NAME` write it"
    try:
        with tarfile.open(archive) as tar:
            members = {member.name.removeprefix("./"): member for member in tar.getmembers()}
            index = _json(tar, members.get("index.json"))
            manifest = _json(tar, members.get("manifest.json"))
    except (OSError, tarfile.TarError, ValueError) as fault:
        die(f"{archive} cannot be read as an image: {fault}", hint=f"give {what}", code=ExitCode.USAGE)
    if index is None and manifest is None:
        die(f"{archive} is not an image archive", hint=f"give {what}", code=ExitCode.USAGE)
    names: list[str] = []
    for entry in manifest or []:
        names += entry.get("RepoTags") or []
    for entry in (index or {}).get("manifests", []):
        notes: dict[str, str] = entry.get("annotations", {})
        names += [notes[key] for key in _NAMES if key in notes][:1]
    unique = list(dict.fromkeys(name for name in names if "/" in name or ":" in name))
    if not unique:
        die(
            f"{archive} holds an image without a name",
            hint="save it under its full name, for example example.org/app:v1",
            code=ExitCode.USAGE,
        )
    return unique


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> Any:
    file = tar.extractfile(member) if member else None
    return json.load(file) if file else None


@contextmanager
def _archives(source: Path) -> Iterator[list[Path]]:
    """The archives that `source` stands for; an OCI layout is packed into one for the time being."""
    if not source.exists():
        die(f"there is no {source}", hint="give an image archive or a folder", code=ExitCode.USAGE)
    if source.is_file():
        yield [source]
    elif (source / "oci-layout").exists():
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / "image.tar"
            with tarfile.open(packed, "w") as tar:
                for part in sorted(source.iterdir()):
                    tar.add(part, part.name)
            yield [packed]
    else:
        found = sorted(path for path in source.iterdir() if path.suffix in (".tar", ".tgz", ".gz"))
        if not found:
            die(f"{source} holds no image archive (*.tar)", hint="or give an OCI layout", code=ExitCode.USAGE)
        yield found

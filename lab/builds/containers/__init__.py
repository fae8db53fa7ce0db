"""Container images, built from nothing but what this release builds: no registry is asked for any.

The artifact holds OCI archives (`<name>.tar`) and `index.json`, which maps each file to the image's
full name. Upstream's images keep upstream's names, as the Kubernetes module's own YAML tells them, so
that its manifests find them on the nodes.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import yaml

from lab.builds import apt
from lab.builds.containers import oci
from lab.builds.containers.oci import FOLDER, Image
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.run import run
from lab.store import Building, Recipe

#: Here, but of other artifacts.
OTHERS = ("bookinfo", "bookinfo_images.py", "istio", "measure", "measure.py", "mesh.py", "samples")

TOOLBOX_PACKAGES = (
    "bind9-dnsutils",
    "ca-certificates",
    "curl",
    "iproute2",
    "iputils-ping",
    "netcat-openbsd",
    "procps",
    "python3",
    "tcpdump",
)

#: CAP_NET_BIND_SERVICE, permitted and effective, as the kernel stores it with a file
#: (linux/capability.h: revision 2 with the effective bit, then permitted and inheritable, twice).
_BIND_LOW_PORTS = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)


def recipe(kubernetes: Recipe, coredns: Recipe) -> Recipe:
    return Recipe(
        name="images",
        title="Container images",
        inputs={
            "kubernetes": kubernetes.key,
            "coredns": coredns.key,
            "suite": lock().versions["debian"],
            "toolbox": [lock().versions["toolbox"], *TOOLBOX_PACKAGES],
            "files": tree_digest(*sorted(_files()), Path(apt.__file__)),
        },
        build=_build,
        needs=("kubernetes", "coredns"),
        space=2 << 30,
    )


def _files() -> list[Path]:
    mine = [path for path in FOLDER.iterdir() if path.name not in (*OTHERS, "__pycache__")]
    return [file for path in mine for file in ([path] if path.is_file() else path.rglob("*"))]


def _build(building: Building) -> None:
    upstream = building.needs["kubernetes"].path / "share"
    images = [
        Image("pause", pause_reference(upstream / "dependencies.yaml"), _fill_pause),
        Image("coredns", _coredns_reference(building), _fill_coredns),
        Image("toolbox", f"underpass.local/toolbox:{lock().versions['toolbox']}", _fill_toolbox),
    ]
    oci.make_all(images, building)
    building.tools["gcc"] = run(["gcc", "-dumpfullversion"]).stdout.strip()


def pause_reference(dependencies: Path) -> str:
    """The pause image's name and tag, from Kubernetes' own build/dependencies.yaml."""
    name = "registry.k8s.io/pause"
    listed = yaml.safe_load(dependencies.read_text(encoding="utf-8"))["dependencies"]
    found = [entry["version"] for entry in listed if entry["name"] == name]
    if not found:
        die(f"{dependencies} does not name {name}", code=ExitCode.ARTIFACT)
    return f"{name}:{found[0]}"


def coredns_reference(manifest: Path) -> str:
    """The CoreDNS image's name and tag, from Kubernetes' own deployment of it."""
    # Not parsed as YAML: it is a template, with placeholders where values go.
    found = re.search(r"^ *image: (\S+/coredns:\S+)$", manifest.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        die(f"{manifest} names no CoreDNS image", code=ExitCode.ARTIFACT)
    return found[1]


def _coredns_reference(building: Building) -> str:
    """Upstream's name with the version that is built here; says so where upstream's is another."""
    upstream = coredns_reference(building.needs["kubernetes"].path / "share" / "coredns.yaml.in")
    name, _, tag = upstream.rpartition(":")
    ours = lock().versions["coredns"]
    if tag != ours:
        building.step.say(f"CoreDNS is {ours} here; Kubernetes' own manifest names {tag}")
        building.facts["coredns"] = {"upstream": upstream, "built": f"{name}:{ours}"}
    return f"{name}:{ours}"


def _fill_pause(context: Path, building: Building) -> None:
    source = building.needs["kubernetes"].path / "share" / "pause.c"
    version = pause_reference(source.with_name("dependencies.yaml")).rpartition(":")[2]
    options = ["-Os", "-Wall", "-Werror", "-static", "-s", "-Wl,--build-id=none", f"-DVERSION=v{version}"]
    run(
        ["gcc", *options, "-o", context / "pause", source],
        hint="`make setup` installs gcc and the C library's headers",
        code=ExitCode.ARTIFACT,
    )


def _fill_coredns(context: Path, building: Building) -> None:
    program = context / "coredns"
    oci.copy_program(building.needs["coredns"], "bin/coredns", program)
    os.setxattr(program, "security.capability", _BIND_LOW_PORTS)


def _fill_toolbox(context: Path, building: Building) -> None:
    oci.debian(context, building, "toolbox", TOOLBOX_PACKAGES)

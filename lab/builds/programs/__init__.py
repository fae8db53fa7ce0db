"""Servers as people run them, in a small Debian of their own: the suite runs them under redirect.

nginx, HAProxy, redis, Node.js and Java are Debian's; go-httpbin, a server of Go's net/http, is one of the
samples.
"""

from __future__ import annotations

from pathlib import Path

from lab.builds import apt
from lab.builds.containers import oci
from lab.builds.inputs import tree_digest
from lab.lock import lock
from lab.store import Building, Recipe

PACKAGES = ("haproxy", "nginx-light", "nodejs", "python3", "redis-server")

_JAVA_INSTALLER = Path(__file__).with_name("install-java")


def recipe(samples: Recipe) -> Recipe:
    """Built when the suite first runs such a program."""
    return Recipe(
        name="test-programs",
        title="Real programs for the suite",
        inputs={
            "samples": samples.key,
            "suite": lock().versions["debian"],
            "packages": list(PACKAGES),
            "files": tree_digest(_JAVA_INSTALLER, Path(__file__), Path(apt.__file__)),
        },
        build=_build,
        needs=("samples",),
        space=2 << 30,
        for_tests=True,
    )


def _build(building: Building) -> None:
    root = building.folder / "rootfs"
    building.folder.chmod(0o700)
    apt.bootstrap(root, building.scratch, PACKAGES, hooks=[_JAVA_INSTALLER])
    oci.copy_program(building.needs["samples"], "bin/go-httpbin", root / "usr/local/bin/go-httpbin")
    building.facts["packages"] = apt.versions(root)

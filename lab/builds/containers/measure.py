"""The image of the measurements: load generators, and the proxies that the in-kernel path is held against.

One image for all of them: clients, servers and proxies are the same files, and nodes keep it once.
"""

from __future__ import annotations

from pathlib import Path

from lab.builds import apt
from lab.builds.containers import oci
from lab.builds.containers.oci import FOLDER, Image
from lab.builds.inputs import tree_digest
from lab.lock import lock
from lab.store import Building, Recipe

PACKAGES = (
    "haproxy",
    "iperf3",
    "libnginx-mod-stream",
    "nginx-light",
    "procps",
    "python3",
    "sockperf",
    "wrk",
)


def recipe(envoy: Recipe) -> Recipe:
    """Built when something is measured, and for bundles; no lab needs it to come up."""
    return Recipe(
        name="measure-image",
        title="Container image of the measurements",
        inputs={
            "envoy": envoy.key,
            "suite": lock().versions["debian"],
            "packages": [lock().versions["measure"], *PACKAGES],
            "files": tree_digest(FOLDER / "measure", Path(oci.__file__), Path(__file__), Path(apt.__file__)),
        },
        build=_build,
        needs=("envoy",),
        space=2 << 30,
        for_bundles=True,
    )


def reference() -> str:
    """The image's full name."""
    return f"underpass.local/measure:{lock().versions['measure']}"


def _build(building: Building) -> None:
    oci.make_all([Image("measure", reference(), _fill)], building)


def _fill(context: Path, building: Building) -> None:
    oci.debian(context, building, "measure", PACKAGES)
    oci.copy_program(building.needs["envoy"], "bin/envoy", context / "envoy")

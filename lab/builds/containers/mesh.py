"""Images of the mesh: Istio's own two, and the sample applications of its documents.

Istio's image of the sidecar holds a fork of Envoy; ours holds Envoy itself. The samples keep the names that
Istio's own YAML gives them, so that it applies unchanged.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab.builds import apt
from lab.builds.containers import oci
from lab.builds.containers.oci import FOLDER, Image
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode, die
from lab.lock import lock
from lab.store import Building, Recipe

#: Where Istio's manifests look for its images.
HUB = "underpass.local"

PROXY_PACKAGES = ("ca-certificates", "iptables")
SAMPLE_PACKAGES = ("ca-certificates", "curl", "gunicorn", "python3-flask", "python3-gevent")

_IMAGE = re.compile(r"^\s*(?:- )?image: (\S+)", re.MULTILINE)


def istio_recipe(istio: Recipe, envoy: Recipe) -> Recipe:
    """Istio's control plane and sidecar."""
    return Recipe(
        name="istio-images",
        title="Container images of Istio",
        inputs={
            "istio": istio.key,
            "envoy": envoy.key,
            "version": lock().versions["istio"],
            "suite": lock().versions["debian"],
            "packages": list(PROXY_PACKAGES),
            "files": _files("istio"),
        },
        build=_build_istio,
        needs=("istio", "envoy"),
        space=2 << 30,
    )


def samples_recipe(samples: Recipe) -> Recipe:
    """The sample applications."""
    return Recipe(
        name="sample-images",
        title="Container images of Istio's samples",
        inputs={
            "samples": samples.key,
            "suite": lock().versions["debian"],
            "packages": list(SAMPLE_PACKAGES),
            "files": _files("samples"),
        },
        build=_build_samples,
        needs=("samples",),
        space=2 << 30,
    )


def _files(folder: str) -> str:
    return tree_digest(FOLDER / folder, Path(oci.__file__), Path(__file__), Path(apt.__file__))


def sample_reference(samples: Path, file: str, name: str) -> str:
    """The full name of the image called `name` (as `curlimages/curl`) in Istio's YAML `file`."""
    named: list[str] = _IMAGE.findall((samples / file).read_text(encoding="utf-8"))
    found = [reference for reference in named if reference.rpartition(":")[0].endswith(f"/{name}")]
    if not found:
        die(f"{samples / file} names no image {name}", code=ExitCode.ARTIFACT)
    return found[0]


def _build_istio(building: Building) -> None:
    tag = lock().versions["istio"]
    oci.make_all(
        [
            Image("pilot", f"{HUB}/pilot:{tag}", _fill_pilot, "istio/pilot"),
            Image("proxyv2", f"{HUB}/proxyv2:{tag}", _fill_proxy, "istio/proxyv2"),
        ],
        building,
    )


def _fill_pilot(context: Path, building: Building) -> None:
    oci.copy_program(building.needs["istio"], "bin/pilot-discovery", context / "pilot-discovery")


def _fill_proxy(context: Path, building: Building) -> None:
    istio = building.needs["istio"]
    oci.debian(context, building, "proxyv2", PROXY_PACKAGES)
    oci.copy_program(istio, "bin/pilot-agent", context / "pilot-agent")
    oci.copy_program(building.needs["envoy"], "bin/envoy", context / "envoy")
    shutil.copyfile(istio.path / "share" / "envoy_bootstrap.json", context / "envoy_bootstrap.json")


def _build_samples(building: Building) -> None:
    source = building.needs["samples"].path / "share" / "samples"

    def named(file: str, name: str) -> str:
        return sample_reference(source, file, name)

    base = f"{HUB}/samples-base:local"
    on_base = {"BASE": base}
    hello = "examples-helloworld"
    oci.make_all(
        [
            Image("base", base, _fill_base, "samples/base", kept=False),
            Image("curl", named("curl/curl.yaml", "curl"), oci.nothing, "samples/curl", on_base),
            *(
                Image(
                    f"helloworld-{version}",
                    named("helloworld/helloworld.yaml", f"{hello}-{version}"),
                    _fill_helloworld,
                    "samples/helloworld",
                    {**on_base, "VERSION": version},
                )
                for version in ("v1", "v2")
            ),
            Image("httpbin", named("httpbin/httpbin.yaml", "go-httpbin"), _fill_httpbin, "samples/httpbin"),
            Image(
                "tcp-echo",
                named("tcp-echo/tcp-echo.yaml", "tcp-echo-server"),
                _fill_tcp_echo,
                "samples/tcp-echo",
            ),
        ],
        building,
    )


def _fill_base(context: Path, building: Building) -> None:
    oci.debian(context, building, "base", SAMPLE_PACKAGES)


def _fill_helloworld(context: Path, building: Building) -> None:
    samples = building.needs["samples"].path / "share" / "samples"
    shutil.copyfile(samples / "helloworld" / "src" / "app.py", context / "app.py")


def _fill_httpbin(context: Path, building: Building) -> None:
    oci.copy_program(building.needs["samples"], "bin/go-httpbin", context / "go-httpbin")


def _fill_tcp_echo(context: Path, building: Building) -> None:
    oci.copy_program(building.needs["samples"], "bin/tcp-echo", context / "tcp-echo")

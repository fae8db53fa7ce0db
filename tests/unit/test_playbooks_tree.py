"""The node side of a part's files: compared, mended, remembered, removed, and never half written."""

from __future__ import annotations

import base64
import importlib.util
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.paths import ROOT


def code(name: str) -> ModuleType:
    """A file of playbooks/module_utils, under the name by which Ansible's modules import it."""
    full = f"ansible.module_utils.{name}"
    if full not in sys.modules:
        file = ROOT / "playbooks" / "module_utils" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(full, file)
        assert spec and spec.loader
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


tree = code("underpass_tree")


def file(path: str, text: str, mode: str = "0644", **more: Any) -> dict[str, Any]:
    data = base64.b64encode(text.encode()).decode()
    return {"path": path, "kind": "file", "mode": mode, "data": data, **more}


def folder(path: str, mode: str = "0755", *, purge: bool = False) -> dict[str, Any]:
    return {"path": path, "kind": "directory", "mode": mode, "purge": purge}


def link(path: str, target: str) -> dict[str, Any]:
    return {"path": path, "kind": "link", "target": target}


class Node:
    """A node's root, and parts that come to it as the module brings them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def present(self, name: str, *entries: dict[str, Any], check: bool = False) -> Any:
        records = tree.Records(self.root, check)
        made = tree.Tree(name, records, self.root, check)
        wanted, had = {entry["path"] for entry in entries}, set(records.read(name)["paths"])
        made.keep_originals(wanted - had)
        records.write(name, wanted | had, [])
        made.present(sorted(entries, key=lambda entry: str(entry["path"])), had)
        records.write(name, wanted, [])
        return made

    def absent(self, name: str, *, check: bool = False) -> Any:
        records = tree.Records(self.root, check)
        made = tree.Tree(name, records, self.root, check)
        made.absent(set(records.read(name)["paths"]))
        records.forget(name)
        return made

    def everything(self) -> dict[str, str]:
        """Path -> what is there, mode included."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            mode = oct(stat.S_IMODE(path.lstat().st_mode))
            what = str(path.readlink()) if path.is_symlink() else "" if path.is_dir() else path.read_text()
            found[str(path.relative_to(self.root))] = f"{mode} {what}"
        return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


SET = (
    folder("/etc/app", "0750", purge=True),
    file("/etc/app/conf", "a = 1\n"),
    file("/etc/app/key", "secret", "0600", secret=True),
    link("/usr/bin/app", "/opt/app"),
)


def test_everything_is_placed_with_its_mode(node: Node) -> None:
    assert node.present("app", *SET).changed == ["/etc/app", "/etc/app/conf", "/etc/app/key", "/usr/bin/app"]
    assert node["/etc/app/conf"].read_text() == "a = 1\n"
    assert stat.S_IMODE(node["/etc/app"].stat().st_mode) == 0o750
    assert stat.S_IMODE(node["/etc/app/key"].stat().st_mode) == 0o600
    assert str(node["/usr/bin/app"].readlink()) == "/opt/app"


def test_a_second_time_changes_nothing(node: Node) -> None:
    node.present("app", *SET)
    before = node.everything()
    assert node.present("app", *SET).changed == []
    assert node.everything() == before


def test_a_check_changes_nothing_and_knows_what_would_be(node: Node) -> None:
    assert node.present("app", *SET, check=True).changed == [entry["path"] for entry in SET]
    assert node.everything() == {}
    node.present("app", *SET)
    node["/etc/app/conf"].write_text("a = 2\n")
    before = node.everything()
    assert node.present("app", *SET, check=True).changed == ["/etc/app/conf"]
    assert node.everything() == before


@pytest.mark.parametrize(
    ("path", "spoil"),
    [
        ("/etc/app/conf", lambda path: path.write_text("a = 2\n")),
        ("/etc/app/conf", lambda path: path.unlink()),
        ("/etc/app/key", lambda path: path.chmod(0o644)),
        ("/etc/app", lambda path: path.chmod(0o777)),
        ("/usr/bin/app", lambda path: (path.unlink(), path.symlink_to("/elsewhere"))),
        ("/usr/bin/app", lambda path: (path.unlink(), path.write_text("a file"))),
    ],
)
def test_drift_is_mended_and_nothing_else_is_touched(node: Node, path: str, spoil: Any) -> None:
    node.present("app", *SET)
    before = node.everything()
    spoil(node[path])
    assert node.present("app", *SET).changed == [path]
    assert node.everything() == before


def test_a_file_that_is_a_link_is_replaced_and_not_followed(node: Node) -> None:
    node.present("app", *SET)
    outside = node["/outside"]
    outside.write_text("theirs")
    node["/etc/app/conf"].unlink()
    node["/etc/app/conf"].symlink_to(outside)
    node.present("app", *SET)
    assert outside.read_text() == "theirs"
    assert not node["/etc/app/conf"].is_symlink()


def test_strangers_in_a_purged_folder_go_and_others_stay(node: Node) -> None:
    node.present("app", *SET)
    for stranger in ("/etc/app/stray", "/etc/app/deep/stray", "/etc/other"):
        node[stranger].parent.mkdir(parents=True, exist_ok=True)
        node[stranger].write_text("x")
    assert set(node.present("app", *SET).changed) == {"/etc/app/stray", "/etc/app/deep"}
    assert node["/etc/other"].exists()


def test_a_purge_spares_what_another_part_has_there(node: Node) -> None:
    node.present("app", *SET)
    node.present("other", file("/etc/app/theirs", "x"))
    assert node.present("app", *SET).changed == []
    assert node["/etc/app/theirs"].exists()


def test_what_a_part_no_longer_has_is_removed(node: Node) -> None:
    node.present("app", *SET)
    assert node.present("app", *SET[:2]).changed == ["/usr/bin/app", "/etc/app/key"]
    assert not node["/etc/app/key"].exists()
    assert node["/etc/app/conf"].exists()


def test_what_moved_to_another_part_stays(node: Node) -> None:
    node.present("app", *SET)
    node.present("other", SET[3])
    assert node.present("app", *SET[:3]).changed == []
    assert node["/usr/bin/app"].is_symlink()


def test_a_part_is_removed_without_a_list_and_leaves_what_others_made(node: Node) -> None:
    node.present("app", *SET)
    node["/etc/app/of-somebody"].write_text("x")
    assert set(node.absent("app").changed) == {"/etc/app/conf", "/etc/app/key", "/usr/bin/app"}
    assert node["/etc/app/of-somebody"].exists()
    assert node.absent("app").changed == []


def test_a_file_that_was_there_before_comes_back(node: Node) -> None:
    node["/etc/hosts"].parent.mkdir()
    node["/etc/hosts"].write_text("theirs\n")
    node["/etc/hosts"].chmod(0o640)
    for text in ("ours\n", "ours, later\n"):
        node.present("app", file("/etc/hosts", text))
        assert node["/etc/hosts"].read_text() == text
    assert node.absent("app").changed == ["/etc/hosts"]
    assert node["/etc/hosts"].read_text() == "theirs\n"
    assert stat.S_IMODE(node["/etc/hosts"].stat().st_mode) == 0o640


def test_a_run_that_was_killed_leaves_nothing_unknown_behind(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def killed(self: Any, entry: dict[str, Any]) -> None:
        calls.append(entry["path"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tree.Tree, "_link", killed)
        with pytest.raises(KeyboardInterrupt):
            node.present("app", *SET)
    assert calls == ["/usr/bin/app"]
    assert node["/etc/app/conf"].exists()
    assert "/etc/app/conf" in node.absent("app").changed
    assert not node["/etc/app"].exists()


def test_a_half_written_file_of_a_killed_run_is_no_hindrance(node: Node) -> None:
    node.present("app", *SET)
    half = node["/etc/app/.conf.underpass-part"]
    half.write_text("a = ")
    node["/etc/app/conf"].unlink()
    node.present("app", *SET)
    assert node["/etc/app/conf"].read_text() == "a = 1\n"
    assert not half.exists()


def test_a_secret_is_never_shown(node: Node) -> None:
    shown = str(node.present("app", *SET).diffs)
    assert "a = 1" in shown
    assert "secret" not in shown
    node["/etc/app/key"].write_text("old-secret")
    assert "old-secret" not in str(node.present("app", *SET).diffs)


def test_a_folder_in_the_way_is_a_fault_and_stays(node: Node) -> None:
    node["/etc/app/conf"].mkdir(parents=True)
    with pytest.raises(tree.Fault, match="/etc/app/conf is a directory"):
        node.present("app", *SET)
    assert node["/etc/app/conf"].is_dir()


@pytest.mark.parametrize("path", ["etc/app", "/etc/../app"])
def test_only_absolute_paths_are_taken(node: Node, path: str) -> None:
    with pytest.raises(tree.Fault, match="not an absolute path"):
        node.present("app", file(path, "x"))


NAMES = st.sets(st.sampled_from(["/a", "/b/c", "/b/d", "/e/f/g"]))


@settings(max_examples=50, deadline=None)
@given(first=NAMES, second=NAMES, strange=NAMES)
def test_whatever_was_there_before_the_outcome_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, first: set[str], second: set[str], strange: set[str]
) -> None:
    """From any earlier release, and any drift, a part ends up as from nothing."""

    def entries(names: set[str], text: str) -> list[dict[str, Any]]:
        return [file(name, text) for name in sorted(names)]

    fresh, worn = Node(tmp_path_factory.mktemp("fresh")), Node(tmp_path_factory.mktemp("worn"))
    fresh.present("app", *entries(second, "new"))
    worn.present("app", *entries(first, "old"))
    for name in strange & (first | second):
        worn[name].parent.mkdir(parents=True, exist_ok=True)
        worn[name].write_text("drift")
    worn.present("app", *entries(second, "new"))
    assert {name for name in second if worn[name].read_text() != "new"} == set()
    assert worn.present("app", *entries(second, "new")).changed == []
    kept = strange - first  # they were there before the part came, if it has them at all
    assert {name for name in first - second - kept if worn[name].exists()} == set()

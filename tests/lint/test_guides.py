"""The guides are whole, and show their files as they are."""

from __future__ import annotations

import re

import pytest

from lab.guide import course
from lab.guide.document import sections
from lab.paths import ROOT
from tests.lint.tree import files, text

GUIDES = course.names()


def test_every_folder_of_guides_is_listed() -> None:
    assert sorted(path.parent.name for path in course.FOLDER.glob("*/guide.md")) == sorted(GUIDES)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_is_whole(name: str) -> None:
    guide = course.read(name)
    assert guide.lab_file.id == "demo", "one lab serves all guides"
    checks = {path for step in guide.steps for path in step.checks}
    assert checks == set((guide.folder / "checks").glob("test_*.py"))
    for step in guide.steps:
        assert step.checks or step.solution is None, f"step {step.number} is to be solved and has no check"
    for table, link in ((course.FOLDER / "README.md", name), (ROOT / "README.md", f"guides/{name}")):
        row = re.search(rf"^\| \[(.+)\]\({link}/guide\.md\) \|.*\| (\d+) \|$", text(table), re.M)
        assert row, f"{table} does not list {name}"
        assert (row[1], int(row[2])) == (guide.title, guide.minutes)


@pytest.mark.parametrize("name", GUIDES)
def test_yaml_that_a_guide_shows_is_what_it_applies(name: str) -> None:
    folder = course.FOLDER / name
    shown = re.findall(r"```yaml\n(.*?)```", text(folder / "guide.md"), re.S)
    documents = [
        part.strip() for path in folder.glob("*.yaml") for part in re.split(r"^---\n", text(path), flags=re.M)
    ]
    assert [block for block in shown if block.strip() not in documents] == []


@pytest.mark.parametrize("name", GUIDES)
def test_what_a_guide_makes_can_be_found_again(name: str) -> None:
    manifests = [path for path in files(course.FOLDER / name) if path.suffix == ".yaml"]
    for path in manifests:
        for document in re.split(r"^---\n", text(path), flags=re.M):
            if re.search(r"^kind: (Namespace|CiliumClusterwideNetworkPolicy)$", document, re.M):
                assert f"underpass.dev/guide: {name}" in document, path


def test_console_blocks_of_all_documents_can_be_read() -> None:
    found = [
        block for path in files() if path.suffix == ".md" for part in sections(path) for block in part.blocks
    ]
    assert found

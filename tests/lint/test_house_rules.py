"""Rules of this project that no linter knows."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.paths import ROOT
from tests.lint.tree import files, text

MOST_LINES = 500
#: Written by tools, or the words of a law firm.
LONG = {"requirements/controller.lock", "requirements/node.lock", "LICENSE"}
LONG_NAMES = {"go.sum"}

BPF_LICENSE = "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause"

#: Hosts that a URL in the project may name: documents for people, and names that nobody has.
PUBLIC = {
    "docs.cilium.io",
    "etcd.io",
    "github.com",
    "json-schema.org",
    "kubernetes.io",
    "www.apache.org",
    "www.kernel.org",
}
#: What a URL's host may begin with where it is made while the program runs.
MADE = ("{", "$", "%")

URL = re.compile(r"https?://(?:[^\s/\"'@`]*@)?([^\s/:\"'`)>,;\\]+)")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_too_long_to_read() -> None:
    lengths = {relative(path): text(path).count("\n") for path in files() if path.name not in LONG_NAMES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES and name not in LONG} == {}


def test_every_bpf_source_names_its_licence_first() -> None:
    sources = [path for path in files(ROOT / "datapath") if path.suffix in (".c", ".h")]
    assert sources
    first = {relative(path): text(path).partition("\n")[0] for path in sources}
    assert {name: line for name, line in first.items() if BPF_LICENSE not in line} == {}


def test_the_projects_licence_is_apache_2() -> None:
    licence = text(ROOT / "LICENSE")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    project = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]
    assert project["license"] == "Apache-2.0"


def test_no_task_of_a_playbook_reaches_beyond_its_own_node_by_url() -> None:
    plays = [path for path in files(ROOT / "playbooks") if path.suffix in (".yaml", ".yml")]
    tasks = [path for path in plays if path.parent.name in ("tasks", "handlers", "playbooks")]
    assert tasks
    urls = {relative(path): set(URL.findall(text(path))) - {"127.0.0.1", "localhost"} for path in tasks}
    assert {name: hosts for name, hosts in urls.items() if hosts} == {}


def test_urls_name_public_documents_or_nobody() -> None:
    assert {found for path in files() if (found := _private(path))} == set()


def _private(path: Path) -> tuple[str, ...]:
    hosts = [host for host in URL.findall(text(path)) if not _harmless(host)]
    return (relative(path), *sorted(set(hosts))) if hosts else ()


def _harmless(host: str) -> bool:
    if host in PUBLIC or host.startswith(MADE) or "{" in host:
        return True
    try:
        return not ip_address(host).is_global
    except ValueError:
        name = host.rstrip(".").lower()
        return (
            "." not in name  # this machine, or a Service of the reader's own namespace
            or re.search(r"(^|\.)(example(\.(org|com|net))?|invalid|svc|test)$", name) is not None
        )


SOURCE_OF_PACKAGES = re.compile(
    r"^\s*(--(extra-)?index-url|--find-links|-i|-f)\b|@ (https?|file):", re.MULTILINE
)


@pytest.mark.parametrize("lock", ["controller.lock", "node.lock"])
def test_locked_packages_have_hashes_and_no_registry_of_their_own(lock: str) -> None:
    content = text(ROOT / "requirements" / lock)
    assert not SOURCE_OF_PACKAGES.search(content)
    entries = re.findall(
        r"^([A-Za-z0-9][\w.-]*)==.*((?:\n    --hash=sha256:[0-9a-f]{64}.*)+)", content, re.MULTILINE
    )
    # A package may be there twice, at versions for Pythons that exclude each other.
    locked = re.findall(r"^([A-Za-z0-9][\w.-]*)==\S+(?: ; ([^\\\n]*))?", content, re.MULTILINE)
    assert len(locked) == len(set(locked)) > 0
    assert [name for name, _ in entries] == [name for name, _ in locked]


def test_all_that_the_project_asks_for_is_locked() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))
    asked = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["dev"]
    asked += project["build-system"]["requires"]
    wanted = {_normal(re.split(r"[<>=!~;\[ ]", name)[0]) for name in asked}
    locked = set(
        re.findall(r"^([A-Za-z0-9][\w.-]*)==", text(ROOT / "requirements/controller.lock"), re.MULTILINE)
    )
    assert wanted - {_normal(name) for name in locked} == set()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_has_a_program_line_can_be_run_and_nothing_else() -> None:
    wrong = []
    for path in files():
        with path.open("rb") as file:
            runs = file.read(2) == b"#!"
        if runs != os.access(path, os.X_OK) and path.stat().st_size:
            wrong.append(relative(path))
    # modules of Ansible begin as it wants them, and are started by it
    assert [name for name in wrong if not name.startswith("playbooks/library/")] == []


#: Modules that only a node has, from Debian or from requirements/node.lock.
OF_NODES = {"bcc"}


def test_what_is_imported_is_locked_so_that_a_fresh_checkout_has_it() -> None:
    locked = {_normal(name) for name in _names(text(ROOT / "requirements" / "controller.lock"))}
    owners = metadata.packages_distributions()
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"tests", "playbooks"}
    modules = {path.stem for path in (ROOT / "playbooks").rglob("*.py")}
    known = ours | modules | set(sys.stdlib_module_names) | OF_NODES
    strangers: dict[str, str] = {}
    for path in files():
        if path.suffix == ".py":
            for name in _imports(path) - known:
                if not {_normal(owner) for owner in owners.get(name, [])} & locked:
                    strangers.setdefault(name, relative(path))
    assert strangers == {}


def test_what_verifies_a_lab_knows_nothing_of_who_made_its_nodes() -> None:
    suite = [ROOT / "lab" / "verify", ROOT / "tests" / "lab" / "verify"]
    knows = [relative(path) for folder in suite for path in files(folder) if "lab.providers" in text(path)]
    assert knows == []


def _names(lock: str) -> list[str]:
    return re.findall(r"^([A-Za-z0-9][\w.-]*)==", lock, re.MULTILINE)


def _imports(path: Path) -> set[str]:
    """The top-level modules that a Python file imports."""
    found = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found

"""The documents are held against the code that they speak of."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from datapath import reasons
from lab import builds
from lab.bootstrap import NEEDS
from lab.cli.app import app
from lab.errors import ExitCode
from lab.labfile import LabFile, parse
from lab.paths import ROOT
from tests.lint.tree import files, text

DOCUMENTS = [path for path in files() if path.suffix == ".md"]
BY_NAME = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS]


def commands() -> dict[str, set[str]]:
    """The commands of `lab`, each with its own commands, if it has any."""
    whole: Any = typer.main.get_command(app)
    return {name: set(getattr(command, "commands", {})) for name, command in whole.commands.items()}


@pytest.mark.parametrize("document", BY_NAME)
def test_every_lab_command_in_a_document_is_one(document: Path) -> None:
    known = commands()
    said = re.findall(
        r"(?:^ {4}|`|/)lab ((?:-[^ ]+ (?:[A-Z]+ )?)*)([a-z]+)(?: ([a-z-]+))?", text(document), re.M
    )
    for _, name, second in said:
        assert name in known, f"{document.name}: lab {name}"
        if known[name] and second:
            assert second in known[name], f"{document.name}: lab {name} {second}"


def test_the_readme_shows_every_command() -> None:
    table = text(ROOT / "README.md")
    assert [name for name in commands() if not re.search(rf"`lab {name}\b", table)] == []


@pytest.mark.parametrize("document", BY_NAME)
def test_every_make_target_in_a_document_is_one(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text(ROOT / "Makefile"), re.M))
    said = set(re.findall(r"(?:^ {4}|`|[A-Z_]+=\S+ )make ([a-z]+)", text(document), re.M))
    assert said <= targets


@pytest.mark.parametrize("document", BY_NAME)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text(document))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", text(ROOT / "docs" / "exit-codes.md"), re.M)
    assert {name: int(number) for number, name in rows} == {code.name: code.value for code in ExitCode}


def test_the_lab_files_fields_are_those_of_the_schema() -> None:
    schema = LabFile.model_json_schema()
    parts = schema["$defs"]
    inner = ("machines", "kubernetes", "redirect", "istio", "network")
    wanted = {name for name in schema["properties"] if name not in inner}
    wanted |= {f"nodes[].{name}" for name in parts["Node"]["properties"]}
    wanted |= {f"machines.{name}" for name in parts["Machines"]["properties"]}
    wanted |= {f"kubernetes.{name}" for name in parts["Kubernetes"]["properties"]}
    wanted |= {f"redirect.{name}" for name in parts["Redirect"]["properties"]}
    wanted |= {f"istio.{name}" for name in parts["Istio"]["properties"]}
    wanted |= {f"network.{name}" for name in parts["Ranges"]["properties"]}
    document = text(ROOT / "docs" / "lab-file.md")
    assert set(re.findall(r"^\| `([^`]+)` \|", document, re.M)) == wanted


def test_the_lab_files_in_documents_are_right() -> None:
    examples = re.findall(r"```yaml\n(apiVersion: underpass.*?)```", "".join(map(text, DOCUMENTS)), re.S)
    assert examples
    for example in examples:
        assert parse(example)[1] == []


def test_the_host_packages_are_those_that_are_installed() -> None:
    said = text(ROOT / "docs" / "host.md")
    listed = re.search(r"without recommended packages: (.*?), and python3-venv", said, re.S)
    assert listed
    assert re.split(r",\s+", " ".join(listed[1].split())) == [need.package for need in NEEDS]


def test_the_artifacts_are_those_that_are_built() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", text(ROOT / "docs" / "artifacts.md"), re.M)
    said = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert said == {recipe.name for recipe in builds.recipes()}


def test_make_alone_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.findall(r"^\.PHONY: ([a-z]+)", text(ROOT / "Makefile"), re.M)
    assert re.findall(r"make ([a-z]+) ", done.stdout) == targets


def test_every_reason_for_plain_tcp_is_explained_to_users() -> None:
    page = text(ROOT / "docs" / "redirect.md")
    plain = [row.name for row in reasons.table() if row.meaning.startswith(("plain TCP", "by TCP"))]
    assert len(plain) > 10
    assert [name for name in plain if not re.search(rf"^\| .*`{name}`", page, re.M)] == []

"""Every command that a document tells its reader to type is run by the suite.

Those of `console` blocks are: tests/lab/guides runs them and compares what they print. One that cannot be run
there is in the list below, with the test that runs it, or a small form of it, elsewhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import typer

from lab.cli.app import _PASS_THROUGH, app
from lab.guide import course
from lab.paths import ROOT
from tests.lint import typed
from tests.lint.tree import files, text

DOCUMENTS = [path for path in files() if path.suffix == ".md"]
BY_NAME = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS]


@dataclass(frozen=True)
class Elsewhere:
    """A command, `*` for any text; why no `console` block runs it; the test that does."""

    command: str
    why: str
    test: str


MAKE, SETUP = "tests/unit/test_bootstrap_make.py", "tests/unit/test_bootstrap_setup.py"
MEASURE, VMS = "tests/lab/test_measure.py", "tests/lab/vms/test_vms.py"
OFFLINE = "tests/lab/lifecycle/test_60_offline.py::test_a_bundle_is_all_that_a_lab_needs"
BOOKINFO = "tests/lab/verify/test_mesh_samples.py::test_bookinfo_runs_from_istios_own_file"
SNAPSHOTS = "tests/lab/lifecycle/test_45_snapshots.py::test_a_restored_lab_is_as_it_was_saved"
LEARNER = "tests/lab/guides/test_a_learner.py::test_a_learner_is_led_through_a_step"
GRAPH = (
    f"{MEASURE}::test_hazard_29_the_graph_is_made_on_free_cpus_and_on_one_by_paths_that_are_what_they_claim"
)
MACHINES = f"{VMS}::test_two_machines_are_a_cluster"
VAGRANT = "tests/lab/vms/test_plain.py::test_vagrant_up_ends_in_the_same_cluster"

LIST = (
    Elsewhere(
        "make test",
        "it is the suite",
        f"{MAKE}::test_the_whole_suite_is_every_part_in_one_run_after_its_artifacts",
    ),
    Elsewhere(
        "make test T=*", "it is a part of the suite", f"{MAKE}::test_an_expression_chooses_tests_by_name"
    ),
    Elsewhere("make soak T=*", "it takes hours", f"{MAKE}::test_a_soak_is_the_same_at_full_size"),
    Elsewhere("make lint", "it is a part of the suite", "tests/lint/test_linters.py::test_types_hold"),
    Elsewhere(
        "make setup PYTHON=*",
        "it would replace the suite's own .venv",
        f"{MAKE}::test_another_python_may_be_chosen",
    ),
    Elsewhere(
        "UNDERPASS_WHEELS=$(*) make setup",
        "it would replace the suite's own .venv",
        "tests/lab/test_artifacts.py::test_the_controllers_wheels_set_up_lab_without_a_registry",
    ),
    Elsewhere(
        "make setup VMS=1",
        "it installs packages",
        f"{SETUP}::test_what_virtual_machines_need_is_installed_where_it_is_asked_for",
    ),
    Elsewhere(
        "uv pip compile *",
        "it asks a registry",
        "tests/lint/test_house_rules.py::test_all_that_the_project_asks_for_is_locked",
    ),
    Elsewhere("lab bundle create underpass.bundle", "it is large", OFFLINE),
    Elsewhere("lab bundle load underpass.bundle", "it is for another machine", OFFLINE),
    Elsewhere("tar --zstd -xf underpass.bundle *", "it is for another machine", OFFLINE),
    Elsewhere(
        "docker save example.org/app:ci -o app.tar",
        "no Docker is needed here",
        "tests/unit/test_user_edges.py::test_an_archives_names_are_read_in_both_forms",
    ),
    Elsewhere("lab image load bookinfo-images", "the images are large", BOOKINFO),
    Elsewhere("lab kubectl apply -n demo -f $(lab samples)/bookinfo/*", "the images are large", BOOKINFO),
    Elsewhere("lab snapshot save *", "it stops the lab", SNAPSHOTS),
    Elsewhere("lab snapshot restore *", "it stops the lab", SNAPSHOTS),
    Elsewhere(
        "lab shell *",
        "it is for a person at a terminal",
        "tests/lab/lifecycle/test_10_reconcile.py::test_a_shell_is_one_on_the_node",
    ),
    Elsewhere(
        "source <(lab completion bash)",
        "completion is for a person at a terminal",
        "tests/unit/test_cli_commands.py::test_completion_can_be_loaded_by_the_shell",
    ),
    Elsewhere("lab guide *", "it leads a person at a terminal", LEARNER),
    Elsewhere(
        "lab measure bring-up",
        "it takes minutes; tried with one node",
        f"{MEASURE}::test_the_life_of_a_lab_is_measured_on_one_that_is_made_for_it",
    ),
    Elsewhere(
        "lab measure network*",
        "it takes minutes; tried with --tiny",
        f"{MEASURE}::test_the_network_is_measured_in_all_its_parts_beside_what_it_is_held_against",
    ),
    Elsewhere("lab measure latency *", "it takes minutes; tried with --tiny", GRAPH),
    Elsewhere(
        "lab measure sidecars*",
        "it takes minutes; tried as a path of the graph, of one round",
        f"{MEASURE}::test_the_graph_has_istios_sidecars_plain_and_accelerated",
    ),
    Elsewhere("make test VMS=*", "it is a part of the suite, where it is asked for", MACHINES),
    Elsewhere(
        "printf *provider: vagrant* > machines.yaml", "machines are made where they are asked for", MACHINES
    ),
    Elsewhere("lab up -f machines.yaml", "machines are made where they are asked for", MACHINES),
    Elsewhere("lab build --provider vagrant", "machines are made where they are asked for", VAGRANT),
    Elsewhere("lab render -f machines.yaml", "machines are made where they are asked for", VAGRANT),
    Elsewhere("vagrant up", "machines are made where they are asked for", VAGRANT),
    Elsewhere("vagrant ssh node-1", "machines are made where they are asked for", VAGRANT),
)


def listed(command: str) -> list[Elsewhere]:
    return [entry for entry in LIST if fnmatchcase(command, entry.command)]


def to_type(document: Path) -> set[str]:
    """The document's commands that no `console` block holds, its own or another's.

    What a guide says beside its blocks is help with a step, which has checks of its own.
    """
    page = text(document)
    said = set(typed.shown(page))
    if document.parent.name not in course.names():
        said |= {command for command in typed.mentioned(page) if _has_words(command)}
    return {command for command in said if not typed.is_form(command)} - RUN


def _command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command of `lab` that the words name, and the words behind its name."""
    command, rest = typer.main.get_command(app), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = getattr(command, "commands")[rest.pop(0)]  # noqa: B009
    return command, rest


def _has_words(command: str) -> bool:
    """Whether anything is behind the command's name: `lab status` is a mention, `lab status --all` is not."""
    program, *words = command.split(" ")
    if program == "lab":
        return bool(_command_of(words)[1])
    return len(words) > (program == "make")


RUN = {command for document in DOCUMENTS for command in typed.run_by_the_suite(document)}


@pytest.mark.parametrize("document", BY_NAME)
def test_what_a_reader_is_to_type_is_run_by_the_suite(document: Path) -> None:
    assert [command for command in sorted(to_type(document)) if not listed(command)] == []


def test_what_is_run_elsewhere_is_so_in_a_document_and_has_its_test() -> None:
    said = {command for document in DOCUMENTS for command in to_type(document)}
    assert [entry for entry in LIST if not any(entry in listed(command) for command in said)] == []
    for entry in LIST:
        path, _, name = entry.test.partition("::")
        tests = [node.name for node in ast.parse(text(ROOT / path)).body if isinstance(node, ast.FunctionDef)]
        assert name in tests, f"{entry.command}: no test {entry.test}"


@pytest.mark.parametrize("document", BY_NAME)
def test_options_of_lab_in_documents_are_options(document: Path) -> None:
    page = text(document)
    everywhere = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    for command in (*typed.shown(page), *typed.mentioned(page), *typed.run_by_the_suite(document)):
        program, *words = command.split(" ")
        named, rest = _command_of(words)
        if program == "lab" and named.name not in _PASS_THROUGH:
            known = everywhere.union(*(parameter.opts for parameter in named.params))
            assert list(_unknown(rest, known)) == [], f"{document.name}: {command}"


def _unknown(words: list[str], known: set[str]) -> Iterator[str]:
    for word in words:
        if word in ("|", "&&", "||", "&", ">"):
            return
        if word.startswith("-") and word.partition("=")[0] not in known:
            yield word


@pytest.mark.parametrize("document", BY_NAME)
def test_blocks_that_are_not_run_hold_no_command(document: Path) -> None:
    """Pictures and files are shown in fenced blocks; commands in `console` blocks, or indented ones."""
    for language, block in typed.blocks(text(document)):
        assert language in ("console", "yaml", "markdown", "text", ""), f"{document.name}: {language}"
        if language in ("text", ""):  # a file is held where it is used, a `markdown` block shows others
            first = [line.split()[0] for line in block.splitlines() if line.strip()]
            assert not {"$", "sudo", *typed.PROGRAMS} & set(first), f"{document.name}: {block}"


def test_commands_are_found_where_a_document_has_them() -> None:
    page = (
        "Say `lab status`, `lab up -f FILE` or `.venv/bin/lab maps --node node-1`.\n\n"
        "    make up   # a remark\n    # another\n    one \\\n        two\n\n    .venv/bin/lab build\n\n"
        "```text\nlab not-this\n\n    nor this\n```\n"
    )
    assert list(typed.shown(page)) == ["make up", "one two", "lab build"]
    assert list(typed.mentioned(page)) == ["lab status", "lab up -f FILE", "lab maps --node node-1"]
    assert [typed.is_form(command) for command in typed.mentioned(page)] == [False, True, False]
    assert [block for _, block in typed.blocks(page)] == ["lab not-this\n\n    nor this\n"]

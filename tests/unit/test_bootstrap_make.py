"""The Makefile and what CI runs: the whole suite, its status, the time of each phase."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.paths import ROOT


def make(*words: str, env: dict[str, str] | None = None) -> str:
    """What `make -n` would run."""
    done = subprocess.run(
        ["make", "-n", *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **(env or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_whole_suite_is_every_part_in_one_run_after_its_artifacts() -> None:
    lines = make("test").splitlines()
    assert [line for line in lines if line.endswith(".ci/artifacts .venv/bin/lab")]
    (run,) = [line for line in lines if "pytest" in line]
    assert run.split()[0] == ".ci/suite"
    parts = [f"tests/{part}" for part in ("unit", "lint", "bpf", "lab") if (ROOT / "tests" / part).is_dir()]
    assert run.split()[-len(parts) :] == parts
    assert "-k" not in run


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("test",), "core"),
        (("test", "VMS=0"), "0"),
        (("test", "VMS=1"), "1"),
        (("test", "T=a"), ""),
        (("test", "T=a", "VMS=1"), "1"),
        (("setup",), ""),
        (("setup", "VMS=1"), "1"),
    ],
)
def test_virtual_machines_are_had_where_they_are_asked_for(
    words: tuple[str, ...], asked: str, tmp_path: Path
) -> None:
    fake(tmp_path, "python3", "echo asked: $UNDERPASS_VMS; exit 1")
    done = subprocess.run(
        ["make", *words],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[:1] == [f"asked: {asked}".rstrip()]


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_an_expression_chooses_tests_by_name(by: str) -> None:
    said = make("test", "T=a and b") if by == "argument" else make("test", env={"T": "a and b"})
    assert '-k "$T"' in said
    assert ".ci/artifacts" not in said


def test_a_path_chooses_tests_by_place() -> None:
    said = make("test", "T=tests/unit/test_labfile.py::test_one")
    assert said.rstrip().endswith(' "$T"')
    assert "-k" not in said


def test_a_soak_is_the_same_at_full_size() -> None:
    said = make("soak", "T=kills")
    assert "UNDERPASS_SIZE=full" in said
    assert '-k "$T"' in said


def test_another_python_may_be_chosen() -> None:
    assert "/opt/python3.12 -I lab/bootstrap.py" in make("setup", "PYTHON=/opt/python3.12")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts of CI alone, in a place of their own."""
    shutil.copytree(ROOT / ".ci", tmp_path / "checkout" / ".ci")
    return tmp_path / "checkout"


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def with_programs(folder: Path, **more: str) -> dict[str, str]:
    """The environment with `folder` before all in PATH; phases are not told to a suite that runs this one."""
    mine = {name: value for name, value in os.environ.items() if name != "UNDERPASS_PHASES"}
    return {**mine, "PATH": f"{folder}:{mine['PATH']}", **more}


@pytest.mark.parametrize("status", [0, 2])
def test_ci_runs_make_test_whole_and_passes_its_status_on(
    checkout: Path, tmp_path: Path, status: int
) -> None:
    fake(
        tmp_path / "bin",
        "make",
        f'echo "make $* in $PWD, stdin: $(cat)"; .ci/phase setup true; .ci/phase tests sh -c "exit {status}"',
    )
    done = subprocess.run(
        [checkout / ".ci" / "run"],
        cwd="/",
        env=with_programs(tmp_path / "bin", T="only this", CDPATH="/"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    lines = done.stdout.splitlines()
    assert lines[0] == f"make test T= in {checkout}, stdin: "
    phases = {line.split()[0]: line.split(None, 5)[-1] for line in lines[2:]}
    result = "passed" if status == 0 else f"failed ({status})"
    assert phases["setup"] == "passed"
    assert phases["tests"] == result
    assert phases["all"] == result


def test_a_run_that_is_interrupted_says_last_what_failed(checkout: Path, tmp_path: Path) -> None:
    fake(
        tmp_path / "bin",
        "make",
        'echo "tests/some.py::test_thing (call)" >> "$UNDERPASS_FAILURES"; echo so; kill -INT $PPID; exit 2',
    )
    done = subprocess.run(
        ["env", "--default-signal=INT", checkout / ".ci" / "run"],
        env=with_programs(tmp_path / "bin", TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 130
    *_, total, last = done.stdout.splitlines()
    assert total.split(None, 5)[-1] == "failed (130)"
    assert last == "failed: tests/some.py::test_thing (call)"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "checkout"]


def test_each_failure_is_recorded_for_ci_with_what_failed_it(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n@pytest.fixture\ndef gone():\n    raise OSError\n"
        "def test_a(): assert False\ndef test_b(gone): pass\n"
        "def test_others_are_not_told_where(): assert 'UNDERPASS_FAILURES' not in os.environ\n"
    )
    words = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    record = tmp_path / "record"
    subprocess.run(
        [*words, "--rootdir", tmp_path, tmp_path / "test_some.py"],
        cwd=ROOT,
        env={**os.environ, "UNDERPASS_FAILURES": str(record)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert record.read_text().splitlines() == ["test_some.py::test_a (call)", "test_some.py::test_b (setup)"]


ELSEWHERE = (
    "tests/bpf",
    "tests/lab/provider",
    "tests/lab/test_artifacts.py",
    "tests/lab/lifecycle/test_60_offline.py",
    "tests/lab/lifecycle/test_70_own_lab.py",
    "tests/unit",
    "tests/lint",
)
APART = f"-v {' '.join(ELSEWHERE)}"
MACHINES = "-v tests/lab/vms"
HERE = " ".join(["-v tests/lab", *(f"--ignore={part}" for part in (*ELSEWHERE, "tests/lab/vms"))])


SUITE = f"""\
printf '%s\n' "$*" >> "$RECORD"
case $* in
    "{MACHINES}") until [ -e "$RECORD.go" ]; do sleep 0.01; done; echo machines; exit "$MACHINES" ;;
    "{APART}") until [ -e "$RECORD.go" ]; do sleep 0.01; done; echo apart; exit "$APART" ;;
    *) touch "$RECORD.go"; echo here; exit "$HERE" ;;
esac
"""


def suite(
    checkout: Path, tmp_path: Path, vms: str, here: int = 0, machines: int = 0, apart: int = 0
) -> tuple[int, list[str], list[str]]:
    """Status, output and what was run by `.ci/suite` with a pytest that is none."""
    fake(tmp_path / "bin", "pytest", SUITE)
    record = tmp_path / "record"
    done = subprocess.run(
        [checkout / ".ci" / "suite", "pytest", "-v", "tests/unit", "tests/bpf", "tests/lab"],
        cwd=checkout,
        env=with_programs(
            tmp_path / "bin",
            RECORD=str(record),
            UNDERPASS_VMS=vms,
            HERE=str(here),
            MACHINES=str(machines),
            APART=str(apart),
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.splitlines(), record.read_text().splitlines()


@pytest.mark.parametrize(
    ("here", "machines", "apart", "status"),
    [(0, 0, 0, 0), (3, 0, 0, 3), (0, 4, 0, 4), (0, 0, 5, 5), (3, 4, 5, 3), (0, 4, 5, 5)],
)
def test_virtual_machines_and_what_needs_no_lab_run_beside_the_rest_of_the_suite(
    checkout: Path, tmp_path: Path, here: int, machines: int, apart: int, status: int
) -> None:
    ended, said, ran = suite(checkout, tmp_path, "core", here, machines, apart)
    assert ended == status
    assert sorted(ran) == sorted([MACHINES, APART, HERE])
    assert ran.index(MACHINES) < ran.index(APART)
    assert [line for line in said if line in ("machines", "here", "apart")] == ["here", "machines", "apart"]


@pytest.mark.parametrize("vms", ["", "0"])
def test_a_suite_without_virtual_machines_is_the_rest(checkout: Path, tmp_path: Path, vms: str) -> None:
    ended, said, ran = suite(checkout, tmp_path, vms, here=3)
    assert ended == 3
    assert [line for line in said if not line.startswith("the tests above")] == ["here", "apart"]
    assert len(ran) == 2


def test_an_interrupted_suite_waits_until_its_machines_are_gone(checkout: Path, tmp_path: Path) -> None:
    script = f"""\
case $* in
    "{MACHINES}") trap 'echo taken down; exit 2' INT; touch "$RECORD"; while :; do sleep 0.01; done ;;
    "{APART}") echo went on ;;
    *) until [ -e "$RECORD" ]; do sleep 0.01; done; trap '' INT; kill -INT 0; exit 2 ;;
esac
"""
    fake(tmp_path / "bin", "pytest", script)
    done = subprocess.run(
        # As at a terminal: who was started in the background may have been told to ignore interrupts.
        ["env", "--default-signal=INT", checkout / ".ci" / "suite", "pytest", "-v", "tests/unit"],
        cwd=checkout,
        env=with_programs(tmp_path / "bin", RECORD=str(tmp_path / "record"), UNDERPASS_VMS="core"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,  # it interrupts its process group, as a terminal does
    )
    assert done.returncode == 130
    assert "taken down" in done.stdout
    assert "went on" not in done.stdout


def test_a_phase_passes_arguments_and_status_through(tmp_path: Path) -> None:
    record = tmp_path / "phases"
    done = subprocess.run(
        [ROOT / ".ci" / "phase", "name", "sh", "-c", 'printf "%s." "$@"; exit 7', "sh", "a b", "$c"],
        env={**os.environ, "UNDERPASS_PHASES": str(record)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7
    assert done.stdout == "a b.$c."
    assert record.read_text().split() == ["name", "0", "failed", "(7)"]


def test_root_works_with_the_users_folders_and_registries_and_no_value_is_shown(
    checkout: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    fake(programs, "id", "echo 1000")
    fake(programs, "sudo", 'printf "%s\\n" "$@"; [[ $1 != chown ]] || exit 9; exit 5')
    fake(checkout / ".venv", "x", "")
    fake(checkout / ".venv" / "bin", "python", f"echo {tmp_path}/cache; echo {tmp_path}/state")
    secret = "dont-show-me"
    done = subprocess.run(
        [checkout / ".ci" / "as-root", "the", "command here"],
        cwd=checkout,
        env=with_programs(
            programs, PIP_INDEX_URL=secret, https_proxy=secret, GOPROXY=secret, T="a", ALIEN="b"
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    kept, *command = done.stdout.splitlines()
    assert command == ["the", "command here"]
    names = set(kept.removeprefix("--preserve-env=").split(","))
    assert {"PIP_INDEX_URL", "https_proxy", "GOPROXY", "T", "UNDERPASS_CACHE", "UNDERPASS_STATE"} <= names
    assert "ALIEN" not in names
    assert secret not in done.stdout
    assert (tmp_path / "cache").is_dir(), "made as the user, or its parents would be root's"
    assert (tmp_path / "state").is_dir()


def test_lab_asks_sudo_for_itself_with_the_same_folders_and_no_value_shown(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "sudo", 'printf "%s\\n" "$@"; printenv UNDERPASS_CACHE PYTHONPYCACHEPREFIX')
    secret = "dont-show-me"
    script = "import os; os.geteuid = lambda: 1000; from lab.cli.context import become_root; become_root()"
    done = subprocess.run(
        [sys.executable, "-c", script, "status", "--all"],
        cwd=ROOT,
        env=with_programs(tmp_path / "bin", UNDERPASS_CACHE=f"{tmp_path}/cache", https_proxy=secret),
        capture_output=True,
        text=True,
        check=True,
    )
    kept, *command = done.stdout.splitlines()
    assert {"UNDERPASS_CACHE", "UNDERPASS_STATE", "https_proxy"} <= set(kept.partition("=")[2].split(","))
    assert command[:4] == ["--", sys.executable, "-m", "lab"]
    assert command[4:6] == ["status", "--all"]
    assert command[6:] == [f"{tmp_path}/cache", f"{tmp_path}/cache/tools/pycache"]
    assert secret not in done.stdout
    assert (tmp_path / "cache").is_dir()

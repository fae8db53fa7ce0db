"""The linters, a test each; a linter that is not there is a failure, not a skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.paths import ROOT
from tests.lint.tree import files


def program(name: str) -> str:
    """The program beside this Python, else the host's."""
    beside = Path(sys.prefix) / "bin" / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.fail(f"{name} is not installed; `make setup` installs it")
    return found


def passes(name: str, *arguments: str, folder: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Run a linter in `folder`; what it prints is the failure."""
    done = subprocess.run(
        [program(name), *arguments],
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    passes("ruff", "check", "--no-fix", ".")


def test_python_is_formatted() -> None:
    passes("ruff", "format", "--check", ".")


def test_types_hold() -> None:
    passes("mypy")


def test_rooms_import_only_what_they_may() -> None:
    passes("lint-imports", "--no-cache", "--no-logo")


def test_ansible_lint_finds_nothing(tmp_path: Path) -> None:
    # ansible-lint looks for ansible beside itself, and keeps a cache in the user's home.
    path = f"{Path(program('ansible-lint')).parent}:{os.environ['PATH']}"
    home = {"HOME": str(tmp_path), "ANSIBLE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    settings = {"ANSIBLE_CONFIG": "ansible.cfg", "PATH": path, **home}
    passes("ansible-lint", "--offline", "--nocolor", "-q", folder=ROOT / "playbooks", env=settings)


def test_yamllint_finds_nothing() -> None:
    passes("yamllint", "--strict", ".")


def test_shellcheck_finds_nothing() -> None:
    scripts = [str(path.relative_to(ROOT)) for path in files() if _is_shell(path)]
    assert scripts
    passes("shellcheck", *scripts)


def _is_shell(path: Path) -> bool:
    if path.suffix == ".sh":
        return True
    with path.open("rb") as file:
        first = file.readline(80)
    return first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash", b"dash")


def test_spelling_is_right() -> None:
    passes("codespell")

"""The commands that are promised are there, explain themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cli.app import _globals_first
from lab.paths import ROOT

COMMANDS = [
    "up",
    "down",
    "stop",
    "start",
    "upgrade",
    "status",
    "shell",
    "exec",
    "kubectl",
    "kubeconfig",
    "image",
    "logs",
    "report",
    "doctor",
    "build",
    "bundle",
    "verify",
    "measure",
    "schema",
    "render",
    "completion",
]


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_command_is_listed_with_what_it_does() -> None:
    listed = lab("--help").stdout
    told = {line.strip(" │").split("  ")[0]: line for line in listed.splitlines() if line.startswith("│ ")}
    assert set(COMMANDS) <= set(told)
    assert all(len(told[name].strip("│ ").split(None, 1)) == 2 for name in COMMANDS)


def test_completion_can_be_loaded_by_the_shell(tmp_path: Path) -> None:
    script = lab("completion", "bash")
    assert script.returncode == 0, script.stderr
    (tmp_path / "script").write_text(script.stdout)
    done = subprocess.run(
        ["bash", "-c", f"source {tmp_path / 'script'}; complete -p lab"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("complete ")
    asked = {**os.environ, "_LAB_COMPLETE": "complete_bash", "COMP_WORDS": "lab st", "COMP_CWORD": "1"}
    words = [sys.executable, "-m", "lab"]
    offered = subprocess.run(words, cwd=ROOT, env=asked, capture_output=True, text=True, check=True).stdout
    assert {"stop", "start", "status"} <= set(offered.split())


@pytest.mark.parametrize("through", ["kubectl", "istioctl", "exec", "shell"])
def test_words_behind_a_command_that_passes_them_on_are_not_labs_own(through: str) -> None:
    given = ["--lab", "mine", through, "version", "-o", "json", "-f", "file"]
    assert _globals_first(given) == given
    assert _globals_first(["status", "-o", "json"]) == ["-o", "json", "status"]

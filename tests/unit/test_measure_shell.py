"""A shell that stays open tells what each command printed and how it ended."""

from __future__ import annotations

import pytest

from lab.errors import LabError
from lab.measure.shell import Shell


def test_commands_share_a_shell_and_each_has_its_own_output() -> None:
    with Shell(["bash"]) as shell:
        assert shell.ask("word=hello; echo one").strip() == "one"
        assert shell.ask("printf '%s' $word").strip() == "hello"


def test_a_command_that_fails_is_a_fault_that_shows_it() -> None:
    with Shell(["bash"]) as shell:
        with pytest.raises(LabError, match="status 3") as fault:
            shell.ask("echo why >&2; (exit 3)")
        assert "why" in fault.value.details
        assert shell.ask("(exit 3)", fails=True).strip() == ""
        assert shell.ask("echo still here").strip() == "still here"


def test_a_command_that_does_not_end_is_a_fault_in_time() -> None:
    with Shell(["bash"]) as shell, pytest.raises(LabError, match=r"did not end within 0\.3 s"):
        shell.ask("echo begun; exec sleep 1000", timeout=0.3)


def test_a_shell_that_is_gone_is_a_fault_and_no_hang() -> None:
    with Shell(["bash"]) as shell, pytest.raises(LabError, match="ended by itself"):
        shell.ask("exit 1")

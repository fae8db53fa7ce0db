"""Subprocesses and steps: faults that speak, logs that hold what happened, times that are kept."""

from __future__ import annotations

import io
import json
import sys
import threading
import traceback
from pathlib import Path

import pytest

from lab.errors import ExitCode, LabError
from lab.files import write_atomic
from lab.progress import JsonLines, LiveSteps, PlainLines, reporter
from lab.run import run
from lab.steps import Steps, current_step, side_by_side


def test_a_failed_program_shows_the_command_and_its_last_words() -> None:
    with pytest.raises(LabError) as caught:
        run(["sh", "-c", "echo first; echo 'last word' >&2; exit 3"], code=ExitCode.NODE, hint="look")
    fault = caught.value
    assert "status 3" in fault.message
    assert fault.details[0] == "command: sh -c 'echo first; echo '\"'\"'last word'\"'\"' >&2; exit 3'"
    assert "last word" in fault.details
    assert (fault.code, fault.hint) == (ExitCode.NODE, "look")
    assert "\nlast word\n" in "".join(traceback.format_exception(fault)), "as a test's report shows it"


def test_a_program_that_is_not_there_is_a_fault_with_a_hint() -> None:
    with pytest.raises(LabError) as caught:
        run(["there-is-no-such-program"])
    assert "cannot start" in caught.value.message
    assert caught.value.hint


def test_a_program_that_hangs_is_ended() -> None:
    with pytest.raises(LabError) as caught:
        run(["sleep", "60"], timeout=0.2)
    assert "within 0.2 s" in caught.value.message


def test_a_program_reads_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_text("from a file")
    assert run(["cat"], stdin="from text").stdout == "from text"
    assert run(["cat"], stdin=file).stdout == "from a file"
    assert run(["cat"]).stdout == ""


def test_a_steps_log_holds_the_commands_and_their_output(tmp_path: Path) -> None:
    steps = Steps(logs=tmp_path)
    with steps.step("greet", "Greet"):
        run(["echo", "hello"])
        run(["echo", "a secret"], quiet=True)
    log = (tmp_path / "01-greet.log").read_text()
    assert "$ echo hello\nhello\n" in log
    assert log.count("a secret") == 1  # the command, not what it printed


def test_steps_count_what_they_change_once() -> None:
    steps = Steps()
    with steps.step("outer", "Outer") as outer:
        outer.change()
        with steps.step("inner", "Inner") as inner:
            inner.change(2)
    assert (outer.changed, inner.changed, steps.changed) == (3, 2, 3)
    assert current_step() is None


def test_a_failed_step_is_named_and_its_outer_steps_fail_too() -> None:
    steps = Steps()
    with pytest.raises(ValueError), steps.step("outer", "Outer"), steps.step("inner", "Inner"):
        raise ValueError
    assert [step.status for step in steps.all] == ["failed", "failed"]
    failed = steps.failed()
    assert failed is not None and failed.id == "inner"


def test_work_done_side_by_side_belongs_to_the_step() -> None:
    meet = threading.Barrier(3, timeout=10)  # passes only if all three run at once

    def work(number: int) -> int:
        meet.wait()
        step = current_step()
        assert step is not None and step.id == "s"
        return number

    with Steps().step("s", "S"):
        assert side_by_side(work, [1, 2, 3]) == 6


def test_events_are_one_json_object_a_line() -> None:
    stream = io.StringIO()
    steps = Steps(JsonLines(stream))
    with steps.step("a", "A") as step:
        step.say("note")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["started", "noted", "finished"]
    assert all(event["step"] == "a" for event in events)
    assert events[-1]["status"] == "done"


def test_plain_lines_say_what_failed() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), Steps(PlainLines(stream)).step("a", "Do a thing"):
        raise ValueError
    assert "Do a thing: FAILED" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_display_is_for_terminals_alone() -> None:
    assert isinstance(reporter("auto", Terminal()), LiveSteps)
    assert isinstance(reporter("auto", io.StringIO()), PlainLines)
    plain = io.StringIO()
    with Steps(reporter("auto", plain)).step("a", "Do a thing") as step:
        step.say("half of it")
    assert "\x1b" not in plain.getvalue()
    assert [line.strip() for line in plain.getvalue().splitlines()][:2] == ["Do a thing ...", "half of it"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    assert write_atomic(file, "old")
    assert not write_atomic(file, "old")
    assert file.stat().st_mode & 0o777 == 0o600

    def broken(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_output_of_any_bytes_is_read() -> None:
    done = run([sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'\\xff ok')"])
    assert done.stdout.endswith(" ok")

"""Guides as documents: steps, blocks, marks, and what is compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import LabError
from lab.guide import course
from lab.guide.course import Progress
from lab.guide.document import sections
from lab.guide.outcome import fits
from lab.guide.shell import Shell
from lab.guide.walk import Walk
from lab.labfile import LabFile
from lab.render import render

GUIDE = """\
# A title

About 5 minutes.

## 1. Look

```console
$ echo one
one
$ echo two \\
> three
two three
```

## 2. Solve

<!-- retry for 3 s -->
<!-- fails -->
```console
$ false
```

```yaml
# ## 3. not a step: it does not begin the line
```

## Afterwards

That was all.
"""

SOLUTION = """\
# Solutions

## 2. Solve

**Hint.** Think of
something.

**Hint.** Think again.

```console
$ true
```
"""


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    folder = tmp_path / "try-it"
    (folder / "checks").mkdir(parents=True)
    (folder / "guide.md").write_text(GUIDE)
    (folder / "solution.md").write_text(SOLUTION)
    (folder / "checks" / "test_2_solved.py").touch()
    return folder


def test_a_guide_is_read_as_steps(guide: Path) -> None:
    read = course.at(guide)
    assert (read.name, read.title, read.minutes) == ("try-it", "A title", 5)
    assert [step.title for step in read.steps] == ["Look", "Solve"]
    assert [part.title for part in read.closing] == ["Afterwards"]
    first, second = read.steps
    assert first.section.commands == ["echo one", "echo two \\\nthree"]
    assert [command.expected for command in first.blocks[0].commands] == ["one", "two three"]
    assert first.blocks[0].commands[0].line == GUIDE[: GUIDE.index("$ echo one")].count("\n") + 1
    assert (first.checks, [path.name for path in second.checks]) == ((), ["test_2_solved.py"])
    assert [(block.retry, block.fails) for block in second.blocks] == [(3, True), (0, False)]
    assert second.hints == ["Think of\nsomething.", "Think again."]
    assert second.section.text.startswith("## 2. Solve\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("## 2. Solve", "## 3. Solve"),
        ("# A title", "A title"),
        ("5 minutes", "a while"),
        ("retry for 3 s", "retry at will"),
        ("<!-- fails -->\n```console", "<!-- fails -->\n\n## 3. Marked\n\n```console"),
        ("$ echo one", "echo one"),
    ],
)
def test_a_faulty_guide_is_refused(guide: Path, old: str, new: str) -> None:
    (guide / "guide.md").write_text(GUIDE.replace(old, new))
    with pytest.raises(LabError):
        course.at(guide)


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("", "", True),
        ("", "something\n", False),
        ("one", "one\n", True),
        ("one", "one\ntwo\n", False),
        ("one\n...", "one\n", True),
        ("one\n...\nfour", "one\ntwo\nthree\nfour\n", True),
        ("one\n...\nfour", "one\ntwo\nthree\n", False),
        ("NAME  READY", "NAME          READY   \n", True),
        ("pod ... is ready", "pod web-1 is ready\n", True),
        ("pod ... is ready", "pod web-1\nis ready\n", False),
        ("a.c", "abc\n", False),
        ("10...:80/", "10.1.2.3:80/\n", True),
    ],
)
def test_what_is_printed_is_compared(expected: str, printed: str, same: bool) -> None:
    assert fits(expected, printed) is same


def test_a_walk_runs_the_blocks_and_tells_what_is_not_as_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ count=1\n$ echo $count; cd /\n1\n$ pwd\n/\n```\n\n"
        "```console\n$ echo wrong\nright\n```\n\n"
        "```console\n$ false\n```\n\n<!-- fails -->\n```console\n$ true\n```\n\n"
        f"<!-- retry for 5 s -->\n```console\n$ cd {tmp_path}; echo >> tries\n$ wc -l < tries\n3\n```\n"
    )
    with Shell("none") as shell:
        walk = Walk(shell)
        results = [walk(example) for part in sections(page, walk) for example in part.examples]
    assert results[0] is None
    assert results[1] is not None and "line 10: $ echo wrong" in results[1] and "right" in results[1]
    assert results[2] is not None and "status 1" in results[2]
    assert results[3] is not None and "status 0" in results[3]
    assert results[4] is None


def test_a_command_that_hangs_is_ended() -> None:
    with Shell("none") as shell:
        assert shell.run("sleep 30 & wait", seconds=0.3).status == 124


def test_a_slow_lab_is_given_the_time_that_it_needs() -> None:
    with Shell("none", slowness=100) as shell:
        assert shell.run("sleep 0.2", seconds=0.1).status == 0


def test_progress_is_kept_with_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERPASS_STATE", str(tmp_path))
    lab = render(LabFile.model_validate({"apiVersion": "underpass.dev/v1", "kind": "Lab", "id": "learned"}))
    lab.folder.mkdir(parents=True)
    progress = Progress.of(lab)
    progress.go_to("one", 1)
    progress.hints["one"] = 2
    progress.go_to("one", 2)
    progress.go_to("two", 1)
    progress.keep(lab)
    assert Progress.of(lab) == Progress("two", {"one": 2, "two": 1}, {})
    progress.forget("two")
    assert progress.current is None

"""Named steps: what `lab` is doing, for how long, with what log.

A command is a list of steps that reads like the manual. Code opens a step with
``with steps.step("nodes", "Start the nodes") as step:``; steps nest. What a user sees of them is the
reporter's business (`lab.progress`); this module only keeps time, status, counts and logs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")

_current: ContextVar[Step | None] = ContextVar("step", default=None)


@dataclass
class Step:
    """One named piece of work. `seconds` and `status` are final once the step has ended."""

    id: str
    title: str
    depth: int
    log: Path | None = None
    seconds: float = 0.0
    status: str = "running"  # running | done | failed
    changed: int = 0
    note: str = ""
    began: float = field(default_factory=time.monotonic, repr=False)
    _reporter: Reporter | None = field(default=None, repr=False)

    def write(self, text: str) -> None:
        """Append `text` to the step's log, where it has one."""
        if self.log:
            with self.log.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)

    def say(self, note: str) -> None:
        """Show a short word beside the step: what it is waiting for, or what it found."""
        self.note = note
        self.write(f"# {note}\n")
        if self._reporter:
            self._reporter.noted(self)

    def change(self, count: int = 1) -> None:
        """Count things that this step changed (a node made, a file written, a unit restarted)."""
        self.changed += count

    def to_dict(self) -> dict[str, Any]:
        """The step as plain data, for reports."""
        return {
            "id": self.id,
            "title": self.title,
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "changed": self.changed,
        }


class Reporter(Protocol):
    """Shows steps to somebody."""

    def started(self, step: Step) -> None: ...

    def noted(self, step: Step) -> None: ...

    def finished(self, step: Step) -> None: ...


class Silent:
    """Shows nothing."""

    def started(self, step: Step) -> None:
        pass

    def noted(self, step: Step) -> None:
        pass

    def finished(self, step: Step) -> None:
        pass


class Steps:
    """The steps of one run of a command, in order; logs go to files under `logs`, if given."""

    def __init__(self, reporter: Reporter | None = None, logs: Path | None = None) -> None:
        self.reporter: Reporter = reporter or Silent()
        self.logs = logs
        self.all: list[Step] = []

    @contextmanager
    def step(self, id: str, title: str) -> Iterator[Step]:
        """Open a step. An exception marks it failed and goes on to the caller."""
        outer = _current.get()
        log = None
        if self.logs:
            self.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", id)
            log = self.logs / f"{len(self.all) + 1:02d}-{name}.log"
        step = Step(id, title, outer.depth + 1 if outer else 0, log, _reporter=self.reporter)
        self.all.append(step)
        token = _current.set(step)
        self.reporter.started(step)
        try:
            yield step
        except BaseException:
            step.status = "failed"
            raise
        else:
            step.status = "done"
        finally:
            _current.reset(token)
            step.seconds = time.monotonic() - step.began
            if outer:
                outer.changed += step.changed
            self.reporter.finished(step)

    @property
    def changed(self) -> int:
        """How many things all steps changed together."""
        return sum(step.changed for step in self.all if step.depth == 0)

    def failed(self) -> Step | None:
        """The innermost step that failed, if any."""
        failed = [step for step in self.all if step.status == "failed"]
        return max(failed, key=lambda step: step.depth) if failed else None


def side_by_side(work: Callable[[Item], int], items: Sequence[Item]) -> int:
    """Do `work` on all items at once, in the current step; the sum of what it returns.

    All are waited for; then the first fault, if any, is raised.
    """
    with ThreadPoolExecutor(max_workers=max(1, len(items))) as pool:
        futures = [pool.submit(copy_context().run, work, item) for item in items]
    return sum(future.result() for future in futures)


def current_step() -> Step | None:
    """The step that the running code belongs to."""
    return _current.get()

"""How steps are shown: a live display on a terminal, plain lines elsewhere, JSON events for programs.

All of it goes to stderr; results go to stdout and are `lab.output`'s business.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lab.steps import Reporter, Silent, Step

ProgressMode = Literal["auto", "live", "plain", "json", "none"]


def reporter(mode: ProgressMode, stream: TextIO) -> Reporter:
    """The reporter for `mode`; `auto` is live on a terminal and plain lines elsewhere."""
    if mode == "none":
        return Silent()
    if mode == "json":
        return JsonLines(stream)
    if mode == "live" or (mode == "auto" and stream.isatty()):
        return LiveSteps(Console(file=stream))
    return PlainLines(stream)


class JsonLines:
    """One JSON object a line: `time`, `event` (started, noted, finished), `step`, `title`, ..."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def started(self, step: Step) -> None:
        self._line("started", step)

    def noted(self, step: Step) -> None:
        self._line("noted", step, note=step.note)

    def finished(self, step: Step) -> None:
        self._line(
            "finished",
            step,
            status=step.status,
            seconds=round(step.seconds, 3),
            changed=step.changed,
            log=str(step.log) if step.log else None,
        )

    def _line(self, event: str, step: Step, **more: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, "step": step.id, "title": step.title, "depth": step.depth}
        print(json.dumps({**line, **more}), file=self._stream, flush=True)


class PlainLines:
    """A line when a step starts, one for each note, and one when it ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def started(self, step: Step) -> None:
        self._line(step, f"{step.title} ...")

    def noted(self, step: Step) -> None:
        self._line(step, f"  {step.note}")

    def finished(self, step: Step) -> None:
        word = "done" if step.status == "done" else "FAILED"
        changed = f", {step.changed} changed" if step.changed else ""
        self._line(step, f"{step.title}: {word} in {step.seconds:.1f} s{changed}")

    def _line(self, step: Step, text: str) -> None:
        print("  " * step.depth + text, file=self._stream, flush=True)


class LiveSteps:
    """Finished steps stay as lines; what runs now is shown below them, moving."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: list[Step] = []
        self._live: Live | None = None

    def started(self, step: Step) -> None:
        self._running.append(step)
        if not self._live:
            self._live = Live(self._now(), console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        self._refresh()

    def noted(self, step: Step) -> None:
        self._refresh()

    def finished(self, step: Step) -> None:
        if step in self._running:
            self._running.remove(step)
        if step.depth <= 1:
            mark = Text("✔ ", style="green") if step.status == "done" else Text("✘ ", style="red")
            changed = f", {step.changed} changed" if step.changed else ""
            line = Text("  " * step.depth).append_text(mark).append(step.title)
            line.append(f"  {step.seconds:.1f} s{changed}", style="dim")
            self._console.print(line)
        self._refresh()
        if not self._running and self._live:
            self._live.stop()
            self._live = None

    def _refresh(self) -> None:
        if self._live:
            self._live.update(self._now())

    def _now(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for step in self._running:
            title = Text("  " * step.depth + step.title)
            if step.note:
                title.append(f"  {step.note}", style="dim")
            elapsed = time.monotonic() - step.began
            table.add_row(Spinner("dots"), title, Text(f"{elapsed:.0f} s", style="dim"))
        return table

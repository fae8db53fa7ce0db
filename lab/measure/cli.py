"""Commands that measure. Each states machine, kernel and size, and prints what was measured."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from lab import paths
from lab import render as rendering
from lab.busy import alone
from lab.cli.context import Context, become_root
from lab.errors import ExitCode, die
from lab.measure import bring_up
from lab.output import Format, emit, table

app = typer.Typer(help="Measure, on this machine, what the project promises.", no_args_is_help=True)

LAB_ID = "measure"


@app.callback()
def options() -> None:
    """A callback, so that a single command keeps its name."""


@app.command("bring-up")
def bring_up_(
    context: typer.Context,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How many lives of the lab.")] = 3,
    settle: Annotated[float, typer.Option(min=0, help="Seconds of rest before memory is read.")] = 30,
) -> None:
    """A build of nothing, up, up again, stop and start of a two-node lab, and its memory when idle."""
    become_root()
    chosen: Context = context.obj
    if rendering.read(LAB_ID):
        die(f"lab {LAB_ID} exists already", hint=f"`lab down --lab {LAB_ID}` removes it", code=ExitCode.BUSY)
    text = (paths.ROOT / "lab.yaml").read_text(encoding="utf-8").replace("id: demo", f"id: {LAB_ID}")
    with tempfile.TemporaryDirectory() as folder, alone(LAB_ID):
        file = Path(folder) / "lab.yaml"
        file.write_text(text, encoding="utf-8")

        rows = bring_up.measure(file, lambda: chosen.steps(chosen.logs_of(LAB_ID, "measure")), rounds, settle)
    if chosen.output is not Format.TABLE:
        emit({"machine": machine(), "rounds": rounds, "figures": rows}, chosen.output)
        return
    facts = machine()
    print(f"{facts['cpus']} CPUs, kernel {facts['kernel']}, {rounds} rounds")
    table(rows, ["name", "unit", "median", "least", "most", "target", "met"])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpus": os.cpu_count(), "kernel": platform.release(), "machine": platform.machine()}

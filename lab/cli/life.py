"""Commands of a lab's life: up, down, stop, start, upgrade, status."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from lab import lifecycle, paths
from lab import render as rendering
from lab.busy import alone
from lab.cli.context import Context, become_root
from lab.errors import LabError
from lab.labfile import load
from lab.lifecycle import Outcome
from lab.output import Format, emit, table
from lab.status import status_of
from lab.steps import Steps


def register(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)
    app.command()(stop)
    app.command()(start)
    app.command()(upgrade)
    app.command()(status)


@contextmanager
def run_alone(context: Context, lab_id: str, verb: str) -> Iterator[Steps]:
    """The steps of a command that changes a lab: alone on it, with logs, faults naming their log."""
    with alone(lab_id):
        steps = context.steps(context.logs_of(lab_id, verb))
        try:
            yield steps
        except LabError as fault:
            failed = steps.failed()
            if failed and failed.log:
                fault.details.append(f"step: {failed.title}; its log: {failed.log}")
            raise


def up(context: typer.Context) -> None:
    """Bring the lab up, or mend it. On a lab that is up it changes nothing."""
    become_root()
    options: Context = context.obj
    file = options.lab_file()
    with run_alone(options, load(file).id, "up") as steps:
        outcome = lifecycle.up(file, steps)
    show(options, outcome)


def start(context: typer.Context) -> None:
    """Start a stopped lab again, data and pods as they were."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    with run_alone(options, lab.id, "start") as steps:
        outcome = lifecycle.start(lab, steps)
    show(options, outcome)


def upgrade(context: typer.Context) -> None:
    """Bring a running lab to what this release and its lab file say, node by node."""
    become_root()
    options: Context = context.obj
    file = options.lab_file()
    with run_alone(options, load(file).id, "upgrade") as steps:
        outcome = lifecycle.upgrade(file, steps)
    show(options, outcome)


def stop(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Cut the power instead of shutting down.")] = False,
) -> None:
    """Power the lab's nodes off in order; `lab start` brings them back."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    with run_alone(options, lab.id, "stop") as steps:
        changed = lifecycle.stop(lab, steps, force=force)
    done(options, lab.id, changed, steps, f"lab {lab.id} is stopped; next: lab start")


def down(context: typer.Context) -> None:
    """Remove the lab and everything of it from this machine. Artifacts stay in the cache."""
    become_root()
    options: Context = context.obj
    lab_id = options.lab_id or load(options.lab_file()).id
    lab = rendering.read(lab_id)
    if lab is None and options.lab_id is None:
        lab = rendering.render(load(options.lab_file()))
    if lab is None:
        lab = options.lab()
    with run_alone(options, lab.id, "down") as steps:
        changed = lifecycle.down(lab, steps)
    word = f"lab {lab.id} is gone" if changed else f"there was nothing of lab {lab.id}"
    done(options, lab.id, changed, steps, f"{word}; next: lab up")


def status(
    context: typer.Context,
    all_labs: Annotated[bool, typer.Option("--all", help="All labs on this machine, a line each.")] = False,
) -> None:
    """What the lab's nodes and its cluster are doing now."""
    become_root()
    options: Context = context.obj
    if all_labs:
        found = [lab for path in _homes() if (lab := rendering.read(path)) is not None]
        rows = [status_of(lab).summary() for lab in found]
        if options.output is not Format.TABLE:
            emit(rows, options.output)
        elif rows:
            table(rows, ["id", "provider", "nodes", "running", "api"])
        else:
            print("no labs here; next: lab up", file=sys.stderr)
        return
    seen = status_of(options.lab())
    if options.output is not Format.TABLE:
        emit(seen.to_dict(), options.output)
        return
    print(f"lab {seen.lab.id}: API server {seen.api}")
    table(
        [node.to_dict() for node in seen.nodes],
        ["name", "roles", "address", "state", "ssh", "ready", "reason", "failed_units"],
    )


def _homes() -> list[str]:
    folder = paths.state() / "labs"
    return sorted(path.parent.name for path in folder.glob("*/lab.json"))


def show(options: Context, outcome: Outcome) -> None:
    """What a command left behind that ends with a running lab."""
    if options.output is not Format.TABLE:
        emit(outcome.to_dict(), options.output)
        return
    lab = outcome.lab
    data: list[dict[str, Any]] = outcome.to_dict()["nodes"]
    table(data, ["name", "roles", "address", "ready", "reason"])
    print()
    print(f"Lab {lab.id} is up: Kubernetes {lab.kubernetes_version} at {lab.api_url}")
    print(f"{outcome.changed} things changed." if outcome.changed else "Nothing had to change.")
    which = "" if lab.id == "demo" else f"--lab {lab.id} "
    print("\nNext:")
    print(f"  .venv/bin/lab {which}kubectl get nodes -o wide")
    print(f"  .venv/bin/lab {which}shell {lab.nodes[0].name}")
    print(f"  .venv/bin/lab {which}verify")


def done(options: Context, lab_id: str, changed: int, steps: Steps, text: str) -> None:
    """What a command did: `text` for a person, the steps for a program."""
    if options.output is Format.TABLE:
        print(text)
    else:
        emit(
            {"id": lab_id, "changed": changed, "steps": [step.to_dict() for step in steps.all]},
            options.output,
        )

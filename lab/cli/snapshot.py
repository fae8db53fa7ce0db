"""Commands on a lab's snapshots: save, restore, list, delete."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lab import snapshots
from lab.cli.context import Context, become_root
from lab.cli.life import done, run_alone, show
from lab.output import Format, emit, table

app = typer.Typer(help="Save a lab as it is; bring it back later.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The snapshot's name.")]


def register(to: typer.Typer) -> None:
    app.command()(save)
    app.command()(restore)
    app.command("list")(list_)
    app.command()(delete)
    to.add_typer(app, name="snapshot")


def save(context: typer.Context, name: Name) -> None:
    """Keep the lab as it is now. System containers are stopped for it and started again."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    with run_alone(options, lab.id, "snapshot-save") as steps:
        changed = snapshots.save(lab, name, steps)
    done(options, lab.id, changed, steps, f"saved; next: lab snapshot restore {name}")


def restore(context: typer.Context, name: Name) -> None:
    """Bring the lab back as it was saved, running. What was done since is lost."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    with run_alone(options, lab.id, "snapshot-restore") as steps:
        outcome = snapshots.restore(lab, name, steps)
    show(options, outcome)


def list_(context: typer.Context) -> None:
    """The lab's snapshots, oldest first."""
    become_root()
    options: Context = context.obj
    rows = [{"name": name} for name in snapshots.names(options.lab())]
    if options.output is not Format.TABLE:
        emit(rows, options.output)
    elif rows:
        table(rows, ["name"])
    else:
        print("no snapshots; next: lab snapshot save NAME", file=sys.stderr)


def delete(context: typer.Context, name: Name) -> None:
    """Forget a snapshot."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    with run_alone(options, lab.id, "snapshot-delete") as steps:
        changed = snapshots.delete(lab, name, steps)
    done(options, lab.id, changed, steps, f"{name} is forgotten")

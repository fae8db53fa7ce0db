"""Commands that look, measure and tell: doctor, verify, report, measure, schema, render, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lab import builds, keys, paths, report, verify
from lab import render as rendering
from lab.busy import alone
from lab.cli.context import Context, become_root
from lab.errors import ExitCode, die
from lab.labfile import LabFile, load
from lab.lifecycle import on_nodes
from lab.measure import cli as measure
from lab.output import Format, emit, table
from lab.providers import provider
from lab.render import Rendered
from lab.verify import Promise


class Shell(StrEnum):
    """Shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor_)
    app.command("verify")(verify_)
    app.command("report")(report_)
    app.add_typer(measure.app, name="measure")
    app.command()(schema)
    app.command()(render)
    app.command()(completion)


def doctor_(context: typer.Context) -> None:
    """Find out, by trying, whether this host can run the lab; say what is wrong and how to mend it."""
    become_root()
    options: Context = context.obj
    from lab import doctor  # slow to load, and needed here alone

    findings = doctor.examine(rendering.render(load(options.lab_file())))
    if options.output is not Format.TABLE:
        emit([finding.to_dict() for finding in findings], options.output)
    else:
        table([finding.to_dict() for finding in findings], ["status", "title", "evidence"])
        for finding in findings:
            if finding.status != "ok":
                print(f"\n{finding.status}: {finding.title}: {finding.cause}\n  fix: {finding.fix}")
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(ExitCode.HOST)


def verify_(
    context: typer.Context,
    areas: Annotated[list[str] | None, typer.Argument(help="Areas to verify; all if absent.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Also write JUnit XML here.")] = None,
) -> None:
    """Prove the promises of a running lab, a line each with the evidence."""
    become_root()
    options: Context = context.obj
    known = verify.areas()
    unknown = sorted(set(areas or []) - set(known))
    if unknown:
        die(f"no area is called {', '.join(unknown)}", hint=f"known: {', '.join(known)}", code=ExitCode.USAGE)
    lab = options.lab()
    promises: list[Promise] = []
    try:
        with options.steps().step("verify", f"Prove the promises of lab {lab.id}") as step:

            def told(promise: Promise, of: int) -> None:
                promises.append(promise)
                step.say(f"{len(promises)} of {of}: {promise.area}, {promise.result}: {promise.promise}")

            verify.run(lab, areas or known, junit, told)
    except KeyboardInterrupt:
        _show_promises(lab, promises, options.output, held=False)  # what was found is not lost
        raise
    held = verify.all_hold(promises)
    _show_promises(lab, promises, options.output, held)
    if not held:
        raise typer.Exit(ExitCode.NOT_VERIFIED)


def _show_promises(lab: Rendered, promises: list[Promise], output: Format, held: bool) -> None:
    rows = [promise.to_dict() for promise in promises]
    if output is not Format.TABLE:
        emit({"id": lab.id, "held": held, "promises": rows}, output)
        return
    table(rows, ["area", "result", "promise", "evidence"])
    promised = [promise for promise in promises if promise.applies]
    kept = sum(promise.held for promise in promised)
    beside = len(promises) - len(promised)
    print(
        f"\n{kept} of {len(promised)} promises hold."
        + (f" {beside} more cannot be asked of this lab; the lines say why." if beside else "")
    )


def report_(
    context: typer.Context,
    into: Annotated[Path, typer.Option("--into", help="The folder for the archive.")] = Path("reports"),
) -> None:
    """Archive what is needed to study a failure, secrets removed."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    steps = options.steps()
    with steps.step("report", f"Collect the report of lab {lab.id}"):
        archive = report.write(lab, into)
    if options.output is Format.TABLE:
        print(archive)
    else:
        emit({"id": lab.id, "archive": str(archive)}, options.output)


def schema() -> None:
    """Print the JSON Schema of the lab file."""
    print(json.dumps(LabFile.model_json_schema(), indent=2))


def render(context: typer.Context) -> None:
    """Write what the lab file means (names, addresses, inventory, keys) into the lab's folder; print it."""
    become_root()
    options: Context = context.obj
    file = options.lab_file()
    lab = rendering.render(load(file))
    with alone(lab.id):
        lab.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys.ensure(lab)
        artifacts = builds.locate_for_labs(lab.provider, {provider(lab).image})
        rendering.write(lab, file.read_text(encoding="utf-8"), on_nodes(artifacts))
        if lab.provider == "vagrant":
            from lab.providers.vagrant.plain import for_vagrant

            for_vagrant(lab, artifacts, paths.ROOT)
    emit(rendering.to_json(lab), Format.JSON if options.output is Format.TABLE else options.output)


def completion(
    shell: Annotated[Shell, typer.Argument(help="Your shell.")],
) -> int:
    """Print a completion script: `source <(lab completion bash)`."""
    asked = {**os.environ, "_LAB_COMPLETE": f"source_{shell.value}"}
    done = subprocess.run(
        [sys.executable, "-m", "lab"], env=asked, check=False, stdout=subprocess.PIPE, text=True
    )
    sys.stdout.write(done.stdout)
    return done.returncode

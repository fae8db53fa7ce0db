"""`lab guide`: leads a learner through a guide, step by step; the learner types the commands himself."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from lab.cli.context import Context, become_root
from lab.errors import ExitCode, die
from lab.guide import checks, course
from lab.guide.course import Guide, Progress, Step
from lab.output import Format, emit, table
from lab.render import Rendered

app = typer.Typer(help="Guides: walkthroughs in steps, each checked on your lab.", no_args_is_help=True)

Name = Annotated[str | None, typer.Argument(help="The guide; the one at hand if absent.", metavar="[NAME]")]

WIDTH = 100


def register(into: typer.Typer) -> None:
    into.add_typer(app, name="guide")


@app.command("list")
def list_(context: typer.Context) -> None:
    """List the guides, and how far you are in each on this lab."""
    become_root()
    options: Context = context.obj
    progress = Progress.of(options.lab()) if options.has_lab() else Progress()
    rows = []
    for guide in map(course.read, course.names()):
        at = progress.steps.get(guide.name, 0)
        state = "done" if at > len(guide.steps) else f"at step {at}" if at else "not begun"
        rows.append(
            {
                "name": guide.name,
                "title": guide.title,
                "minutes": guide.minutes,
                "steps": len(guide.steps),
                "state": state,
            }
        )
    if options.output is not Format.TABLE:
        emit(rows, options.output)
    else:
        table(rows, ["name", "title", "minutes", "steps", "state"])


@app.command()
def start(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The guide.")],
) -> None:
    """Begin a guide, or go on where you left it."""
    become_root()
    options: Context = context.obj
    guide = course.read(name)
    lab = options.lab()
    lacking = course.lacks(guide, lab)
    if lacking:
        die(
            f"lab {lab.id} does not fit the guide {name}",
            details=lacking,
            hint=f"`lab -f guides/{name}/lab.yaml up` brings a lab up that does",
            code=ExitCode.USAGE,
        )
    progress = Progress.of(lab)
    at = progress.steps.get(name, 0)
    progress.go_to(name, at or 1)
    progress.keep(lab)
    if not at and options.output is Format.TABLE:
        _read(guide.introduction.text)
    _show(options, guide, at or 1)


@app.command("next")
def next_(context: typer.Context, name: Name = None) -> None:
    """Go on to the next step, once this one is done."""
    options, lab, progress, guide, step = _at(context, name)
    promises = checks.check(lab, step)
    if not checks.done(promises):
        _missing(options, guide, step, promises)
    progress.go_to(guide.name, step.number + 1)
    progress.keep(lab)
    _show(options, guide, step.number + 1)


@app.command()
def check(context: typer.Context, name: Name = None) -> None:
    """Ask the lab whether this step is done; if not, what is missing and why."""
    options, lab, _, guide, step = _at(context, name)
    promises = checks.check(lab, step)
    if not checks.done(promises):
        _missing(options, guide, step, promises)
    if options.output is not Format.TABLE:
        emit(_as_data(guide, step, promises), options.output)
    elif promises:
        for promise in promises:
            print(f"  done     {promise.promise}")
        print(f"Step {step.number} is done. Next: lab guide next")
    else:
        print("This step is to look around; there is nothing to check. Next: lab guide next")


@app.command()
def hint(context: typer.Context, name: Name = None) -> None:
    """Give a hint for this step; called again, the next one."""
    options, lab, progress, guide, step = _at(context, name)
    given = step.hints or [
        f"The step's own commands are the way: `{command}`" for command in step.section.commands
    ]
    number = min(progress.hints.get(guide.name, 0), len(given) - 1)
    text = given[number] if given else "Read the step again; there is nothing to type in it."
    progress.hints[guide.name] = number + 1
    progress.keep(lab)
    if options.output is not Format.TABLE:
        emit(
            {"guide": guide.name, "step": step.number, "hint": text, "of": len(given), "number": number + 1},
            options.output,
        )
        return
    _read(text)
    if number + 1 >= len(given):
        print("That was the last hint; `lab guide solve` does the step for you.")


@app.command()
def solve(context: typer.Context, name: Name = None) -> None:
    """Do this step for you, and show the commands."""
    options, lab, _, guide, step = _at(context, name)
    typed = checks.solve(lab, step)
    if options.output is not Format.TABLE:
        rows = [{"command": command, "status": ended.status} for command, ended in typed]
        emit({"guide": guide.name, "step": step.number, "commands": rows}, options.output)
        return
    if step.solution:
        _read(step.solution.text)
    for command, ended in typed:
        print(f"$ {command}")
        if ended.status:
            print(ended.output.rstrip())
    print("Next: lab guide check")


@app.command()
def reset(context: typer.Context, name: Name = None) -> None:
    """Take back what a guide changed on the lab, and forget how far you were."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    progress = Progress.of(lab)
    guide = course.read(_chosen(name, progress))
    steps = options.steps()
    with steps.step("reset", f"Take back the changes of {guide.name}"):
        removed = checks.reset(lab, guide)
    progress.forget(guide.name)
    progress.keep(lab)
    if options.output is not Format.TABLE:
        emit({"guide": guide.name, "removed": removed}, options.output)
    else:
        print(f"removed: {', '.join(removed) or 'nothing was there'}; next: lab guide start {guide.name}")


def _chosen(name: str | None, progress: Progress) -> str:
    chosen = name or progress.current
    if chosen is None:
        die(
            "no guide is at hand",
            hint="`lab guide list` lists them, `lab guide start NAME` begins one",
            code=ExitCode.NOT_THERE,
        )
    return chosen


def _at(context: typer.Context, name: str | None) -> tuple[Context, Rendered, Progress, Guide, Step]:
    """Where the learner is: in a guide that was begun and is not at its end."""
    become_root()
    options: Context = context.obj
    lab = options.lab()
    progress = Progress.of(lab)
    guide = course.read(_chosen(name, progress))
    number = progress.steps.get(guide.name, 0)
    if not number:
        die(
            f"the guide {guide.name} was not begun on lab {lab.id}",
            hint=f"`lab guide start {guide.name}` begins it",
            code=ExitCode.NOT_THERE,
        )
    if number > len(guide.steps):
        die(
            f"the guide {guide.name} is done",
            hint="`lab guide reset` takes its changes back, `lab guide list` lists the others",
            code=ExitCode.NOT_THERE,
        )
    return options, lab, progress, guide, guide.step(number)


def _show(options: Context, guide: Guide, number: int) -> None:
    """The step to do now, or the end of the guide."""
    if options.output is not Format.TABLE:
        step = guide.step(number) if number <= len(guide.steps) else None
        emit(
            {
                "guide": guide.name,
                "done": step is None,
                "step": number,
                "of": len(guide.steps),
                "title": step.title if step else None,
                "commands": step.section.commands if step else [],
            },
            options.output,
        )
        return
    if number > len(guide.steps):
        for part in guide.closing:
            _read(part.text)
        print(f"You are through {guide.title}. `lab guide reset` takes its changes back.")
        return
    _read(guide.step(number).section.text)
    print(f"Step {number} of {len(guide.steps)}. When it is done: lab guide next (check, hint, solve)")


def _missing(options: Context, guide: Guide, step: Step, promises: list[Any]) -> None:
    """Say what the step still lacks, and end with the status of a promise that does not hold."""
    if options.output is not Format.TABLE:
        emit(_as_data(guide, step, promises), options.output)
    else:
        for promise in promises:
            print(f"  {'done    ' if promise.held else 'missing '} {promise.promise}")
            if not promise.held:
                print(f"           {promise.evidence}")
        print(f"Step {step.number} is not done yet. lab guide hint helps, lab guide solve does it.")
    raise typer.Exit(ExitCode.NOT_VERIFIED)


def _as_data(guide: Guide, step: Step, promises: list[Any]) -> dict[str, Any]:
    return {
        "guide": guide.name,
        "step": step.number,
        "done": checks.done(promises),
        "checks": [promise.to_dict() for promise in promises],
    }


def _read(text: str) -> None:
    """Markdown on the terminal, no wider than is good to read."""
    console = Console()
    console.print(Markdown(text), width=min(console.width, WIDTH))

"""The ``lab`` command: options, commands, and what a fault looks like."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Protocol, runtime_checkable

import typer
from typer.completion import get_completion_inspect_parameters

from lab.cli import artifacts, cluster, guides, life, network, snapshot, tools
from lab.cli.context import Context
from lab.errors import ExitCode, LabError
from lab.output import Format

app = typer.Typer(
    name="lab",
    help="Underpass: a real Kubernetes lab on your machine, its network in BPF.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The lab file; ./lab.yaml or the project's if absent.")
    ] = None,
    lab: Annotated[
        str | None, typer.Option("--lab", "-l", envvar="UNDERPASS_LAB", help="The id of a lab that exists.")
    ] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How results are written.")] = Format.TABLE,
    progress: Annotated[
        str, typer.Option(help="auto, live, plain, json (one event a line) or none; goes to stderr.")
    ] = "auto",
    debug: Annotated[bool, typer.Option("--debug", help="Show stack traces.")] = False,
) -> None:
    if progress not in ("auto", "live", "plain", "json", "none"):
        raise typer.BadParameter("auto, live, plain, json or none", param_hint="--progress")
    context.obj = Context(file, lab, output, progress, debug)  # type: ignore[arg-type]


for room in (life, snapshot, cluster, network, guides, artifacts, tools):
    room.register(app)


def main() -> None:
    """Run ``lab`` and exit with one of `ExitCode`, or with the status of a command handed over to."""
    if "_LAB_COMPLETE" in os.environ:
        # typer learns the shells as it makes its own options; we leave those out: they write to users' files
        get_completion_inspect_parameters()
    argv = _globals_first(sys.argv[1:])
    debug = "--debug" in argv
    interrupted = _note_interrupts()
    try:
        status = app(args=argv, prog_name="lab", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = ExitCode.INTERRUPTED
    except LabError as fault:
        if not interrupted.is_set():
            show(fault)
            if debug:
                traceback.print_exc()
            sys.exit(fault.code)
        status = ExitCode.INTERRUPTED  # what the interrupt ended failed, and its fault came first
    except BrokenPipeError:
        sys.exit(ExitCode.OK)
    except Exception as fault:
        if isinstance(fault, _UsageFault):  # a wrong option or argument: it knows how to show itself
            fault.show()
            sys.exit(ExitCode.USAGE)
        say(f"lab: a fault in Underpass itself: {type(fault).__name__}: {fault}")
        say(
            "  what to do: run it again with --debug for the trace; `lab report` collects what a report needs"
        )
        if debug:
            traceback.print_exc()
        sys.exit(ExitCode.BUG)
    if status == ExitCode.INTERRUPTED:  # typer makes an exit status of ctrl-C
        say("interrupted; the same command again goes on from where this one stopped")
    sys.exit(status if isinstance(status, int) else ExitCode.OK)


def _note_interrupts() -> threading.Event:
    """Ctrl-C goes to the programs that we wait for, too: remember it, whichever of us ends first."""
    seen = threading.Event()

    def note(signum: int, frame: FrameType | None) -> None:
        seen.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    return seen


@runtime_checkable
class _UsageFault(Protocol):
    """What typer raises for wrong options; it does not export the base class."""

    exit_code: int

    def show(self) -> None: ...


#: Options of `lab` itself that people also write behind the command.
_FLAGS = {"--debug"}
_VALUED = {"-o", "--output", "--progress", "-f", "--file", "-l", "--lab"}
#: Commands that pass their arguments through untouched.
_PASS_THROUGH = {"kubectl", "istioctl", "exec", "shell"}


def _globals_first(argv: list[str]) -> list[str]:
    """`lab up -o json` and `lab -o json up` are the same: move the global options to the front."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        if word == "--" or word in _PASS_THROUGH:
            rest += [word, *words]
        elif word in _FLAGS or (equals and name in _VALUED):
            front.append(word)
        elif word in _VALUED:
            front += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            rest.append(word)
    return front + rest


def say(text: str) -> None:
    print(text, file=sys.stderr)


def show(fault: LabError) -> None:
    """A fault, for a person: what happened, the details, what to do; as JSON if progress is JSON."""
    if "--progress=json" in sys.argv:
        say(
            json.dumps(
                {
                    "event": "error",
                    "message": fault.message,
                    "details": fault.details,
                    "hint": fault.hint,
                    "code": int(fault.code),
                }
            )
        )
        return
    say(f"lab: {fault.message}")
    for detail in fault.details:
        say(f"  {detail}")
    if fault.hint:
        say(f"  what to do: {fault.hint}")

"""The one place where `lab` starts another program.

Every subprocess goes through `run`, so that each can be shown as a command to paste, logs to the
step it belongs to, and fails with the tail of its output instead of a trace.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab.errors import ExitCode, LabError
from lab.steps import current_step

TAIL_LINES = 20


@dataclass(frozen=True)
class Completed:
    """What a finished program left: its arguments, exit status and captured output (text)."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


class CommandError(LabError):
    """A program failed or ran out of time. Carries the command to paste and the tail of its output."""

    def __init__(
        self, what: str, argv: Sequence[str], output: str, *, hint: str | None, code: ExitCode
    ) -> None:
        tail = output.strip().splitlines()[-TAIL_LINES:]
        super().__init__(
            what,
            hint=hint,
            details=[f"command: {shlex.join(argv)}", *tail],
            code=code,
        )


def run(
    argv: Sequence[str | Path],
    *,
    ok: Sequence[int] = (0,),
    stdin: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    hint: str | None = None,
    code: ExitCode = ExitCode.BUG,
    quiet: bool = False,
    inherit: Sequence[int] = (),
) -> Completed:
    """Run a program to its end and return its output as text.

    `stdin` is the text to write to it, or the file to read from. `env` is added to the environment.
    `timeout` is in seconds. A status not in `ok` raises `CommandError` with `hint` and exit status
    `code`; ``ok=range(256)`` accepts every status.
    `quiet` keeps the output out of the step's log (for secrets and for very large answers).
    `inherit` are open descriptors that it gets beside the three of every program.
    """
    args = [str(a) for a in argv]
    step = current_step()
    if step:
        step.write(f"$ {shlex.join(args)}\n")
    source = stdin.open("rb") if isinstance(stdin, Path) else None
    try:
        process = subprocess.Popen(
            args,
            stdin=source or (subprocess.DEVNULL if stdin is None else subprocess.PIPE),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **env} if env else None,
            cwd=cwd,
            pass_fds=inherit,
        )
    except (FileNotFoundError, PermissionError) as fault:
        raise LabError(
            f"cannot start {args[0]}: {fault.strerror}",
            hint=hint or f"install {args[0]}, or run `make setup`, which installs what the host lacks",
            code=code,
        ) from fault
    finally:
        if source:
            source.close()

    stdout: list[str] = []
    stderr: list[str] = []

    def drain(pipe: IO[str], into: list[str]) -> None:
        for line in pipe:
            into.append(line)
            if step and not quiet:
                step.write(line)

    assert process.stdout and process.stderr
    readers = [
        threading.Thread(target=drain, args=(process.stdout, stdout), daemon=True),
        threading.Thread(target=drain, args=(process.stderr, stderr), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        if isinstance(stdin, str) and process.stdin:
            try:
                process.stdin.write(stdin)
                process.stdin.close()
            except BrokenPipeError:
                pass  # the program's own status and output say why it stopped reading
        status = process.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        raise CommandError(
            f"{args[0]} did not finish within {timeout:g} s",
            args,
            "".join(stdout + stderr),
            hint=hint,
            code=code,
        ) from None
    except BaseException:
        _end(process)
        raise
    finally:
        for reader in readers:
            reader.join(timeout=2)
        process.stdout.close()
        process.stderr.close()
    if status not in ok:
        raise CommandError(
            f"{args[0]} failed with status {status}",
            args,
            "".join(stdout + stderr),
            hint=hint,
            code=code,
        )
    return Completed(tuple(args), status, "".join(stdout), "".join(stderr))


def _end(process: subprocess.Popen[str]) -> None:
    """End a program that we started: asked first, then killed."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

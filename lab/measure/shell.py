"""A shell that stays open in a pod, on a node or in a namespace: a command costs a millisecond to start.

A new `kubectl exec` for each of hundreds of short measurements would take longer than they do, and its own
work would be measured with them.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn

from lab.errors import ExitCode, die

_MARK = "underpass-done"


class Shell:
    """`argv` starts a bash that reads commands from stdin."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, command: str, *, timeout: float = 30, fails: bool = False) -> str:
        """Run `command`; what it printed. A status other than 0 is a fault unless it `fails`."""
        assert self._process.stdin
        try:
            self._process.stdin.write(f"{command}\nended=$?; echo; echo {_MARK} $ended\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            self._lost(command, "")
        text, status = self._answer(command, timeout)
        if status and not fails:
            die(
                f"a command of the measurement failed with status {status}",
                details=[f"command: {command[:300]}", *text.strip().splitlines()[-10:]],
                code=ExitCode.NODE,
            )
        return text

    def _answer(self, command: str, timeout: float) -> tuple[str, int]:
        assert self._process.stdout
        number, deadline, text = self._process.stdout.fileno(), time.monotonic() + timeout, b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([number], [], [], left)[0]:
                self.close()
                die(
                    f"a command of the measurement did not end within {timeout:g} s",
                    details=[f"command: {command[:300]}", *text.decode(errors="replace").splitlines()[-5:]],
                    code=ExitCode.NODE,
                )
            part = os.read(number, 65536)
            if not part:
                self._lost(command, text.decode(errors="replace"))
            text += part
            head, mark, tail = text.rpartition(f"\n{_MARK} ".encode())
            if mark and tail.endswith(b"\n"):
                return head.decode(errors="replace"), int(tail)

    def _lost(self, command: str, text: str) -> NoReturn:
        die(
            "a shell of the measurement ended by itself",
            details=[f"shell: {' '.join(self._argv)[:300]}", f"command: {command[:200]}", text[-500:]],
            hint="`lab status` and `lab kubectl get pods -A` show what is down",
            code=ExitCode.NODE,
        )

    def close(self) -> None:
        """End the shell, and with it what it still runs."""
        if self._process.poll() is None:
            if self._process.stdin:
                self._process.stdin.close()
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

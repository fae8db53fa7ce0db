# SPDX-License-Identifier: Apache-2.0
"""systemd units of a node: enabled, running, with the files that are there now, and ready.

Part of `underpass_part`; runs on the node. Nothing outside Python's own library.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

UNIT_CONFIG = Path("/usr/local/lib/underpass/unit-config")
PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,UnitFileState,InvocationID,NeedDaemonReload,Result,"
    "ExecMainStatus,NRestarts"
)
UNIT_FOLDER = "/etc/systemd/system/"
PAUSE = 0.1  # seconds between two questions whether a unit is ready; on a slow node as long as they take
ASK_SECONDS = 5
LOOK_EVERY = 10  # questions, between two looks whether the unit was restarted
GIVE_UP = 3  # restarts by systemd
JOURNAL_LINES = 20


Run = Callable[[list[str]], tuple[int, str, str]]

#: Unit name -> its properties.
Shown = dict[str, dict[str, str]]


class UnitFault(Exception):
    """A unit does not do what it should; the text says which, and the end of its journal."""


class NotReady(Exception):
    """A unit is not ready yet; the text says what it answers."""


class Units:
    """The units of one part. `run` runs a command: (status, stdout, stderr).

    A unit is a mapping with `name`, and where it has them `check`, `url`, `ca`, `certificate`, `key`
    and `socket`, as the module describes them.
    """

    def __init__(self, units: list[dict[str, Any]], run: Run, *, timeout: float, check: bool) -> None:
        self.units = units
        self.names = [unit["name"] for unit in units]
        self.run = run
        self.timeout = timeout
        self.check = check

    def must(self, *argv: str) -> str:
        """A command's stdout; its failure is a fault."""
        status, out, err = self.run(list(argv))
        if status:
            raise UnitFault(f"{' '.join(argv)}: {err.strip() or out.strip()}")
        return out

    def show(self) -> Shown:
        """Unit name -> its properties."""
        out = self.must("systemctl", "show", f"--property={PROPERTIES}", "--", *self.names)
        blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in out.split("\n\n")]
        return dict(zip(self.names, [block for block in blocks if block], strict=True))

    def stale(self, shown: Shown) -> list[str]:
        """Those of the running units that were not started with the files that are there now."""
        running = [name for name in self.names if shown[name]["ActiveState"] == "active"]
        if not running or not UNIT_CONFIG.exists():
            return running
        noted = {}
        for line in self.must(str(UNIT_CONFIG), "list", *running).splitlines():
            name, invocation, state = line.split()
            noted[name] = state if invocation == shown[name]["InvocationID"] else "stale"
        return [name for name in running if noted.get(name) != "fresh"]

    def undone(self, shown: Shown) -> list[str]:
        """Those of the running units whose work does not hold any more."""
        checks = {unit["name"]: unit["check"] for unit in self.units if unit.get("check")}
        running = [name for name in checks if shown[name]["ActiveState"] == "active"]
        return [name for name in running if self.run(checks[name])[0]]

    def reading(self, paths: list[str]) -> list[str]:
        """Those units that read one of `paths`."""
        if not paths or not UNIT_CONFIG.exists():
            return []
        found = set()
        for line in self.must(str(UNIT_CONFIG), "reads", *self.names).splitlines():
            name, read = line.split(" ", 1)
            if any(path == read or path.startswith(read + "/") for path in paths):
                found.add(name)
        return [name for name in self.names if name in found]

    def started(self, placed: list[str]) -> dict[str, list[str]]:
        """Enable, start and restart what needs it, and wait until all are ready.

        `placed` are the paths that were mended just now, or as a check would be. Returns the names
        of the units that were enabled, started and restarted.
        """
        shown = self.show()
        reload = any(path.startswith(UNIT_FOLDER) for path in placed)
        reload = reload or any(unit["NeedDaemonReload"] == "yes" for unit in shown.values())
        if reload and not self.check:
            self.must("systemctl", "daemon-reload")
            shown = self.show()
        enable = [name for name in self.names if shown[name]["UnitFileState"] in ("disabled", "")]
        start = [name for name in self.names if shown[name]["ActiveState"] != "active"]
        again = {*self.stale(shown), *self.undone(shown)}
        again |= set(self.reading(placed)) - set(start) if self.check else set()
        restart = [name for name in self.names if name in again]
        result = {"enabled": enable, "started": start, "restarted": restart}
        if self.check:
            return result
        self._refuse_masked(shown)
        deadline = time.monotonic() + self.timeout
        if enable:
            self.must("systemctl", "enable", "--quiet", "--no-reload", "--", *enable)
        if start:
            self.run(["systemctl", "reset-failed", "--", *start])  # forget how often they failed before
        if changing := [name for name in self.names if name in {*start, *restart}]:
            status, _, err = self.run(["systemctl", "restart", "--", *changing])
            if status:
                raise self._fault(err.strip())
        self.wait(deadline)
        return result

    def _refuse_masked(self, shown: Shown) -> None:
        masked = [name for name in self.names if shown[name]["UnitFileState"] == "masked"]
        if masked:
            raise UnitFault(f"masked by hand: {', '.join(masked)}; `systemctl unmask` them")

    def stopped(self) -> list[str]:
        """Stop and disable, last one first. Returns the names of those that were running or enabled."""
        shown = self.show()
        ended = ("inactive", "failed")
        stop = [name for name in reversed(self.names) if shown[name]["ActiveState"] not in ended]
        disable = [name for name in self.names if shown[name]["UnitFileState"] == "enabled"]
        if not self.check:
            for name in stop:
                self.must("systemctl", "stop", "--", name)
            if disable:
                self.must("systemctl", "disable", "--quiet", "--", *disable)
        return [name for name in self.names if name in {*stop, *disable}]

    def given_back(self) -> None:
        """Let units that others brought run again, as they did before the part came."""
        if not self.check:
            self.must("systemctl", "daemon-reload")
            self.run(["systemctl", "reset-failed", "--", *self.names])  # those that are gone failed, maybe
            for name, unit in self.show().items():
                if unit["LoadState"] == "loaded":
                    self.must("systemctl", "preset", "--quiet", "--", name)
                    self.must("systemctl", "start", "--", name)

    def wait(self, deadline: float) -> None:
        """Wait until every unit is active and ready; a fault with its journal if that does not come."""
        for unit in self.units:
            name, asked, before = unit["name"], 0, dict[str, str]()
            began = time.monotonic()
            while (answer := self.answer(unit)) is not None:
                took = time.monotonic() - began
                # Counted from its turn on: what it needs was not ready before.
                before = before or self.show()[name]
                asked += 1
                if time.monotonic() > deadline:
                    raise self._fault(f"{name} is not ready after {self.timeout:g} s: {answer}")
                if asked % LOOK_EVERY == 0 and _restarts(self.show()[name], before) >= GIVE_UP:
                    raise self._fault(f"{name} ends again and again: {answer}")
                time.sleep(max(PAUSE, took))
                began = time.monotonic()
        shown = self.show()
        if any(shown[name]["ActiveState"] != "active" for name in self.names):
            raise self._fault("started, and ended again")

    def answer(self, unit: dict[str, Any]) -> str | None:
        """Ask a unit once whether it is ready: None if it is, else what it says."""
        try:
            self.ready(unit)
        except NotReady as not_yet:
            return str(not_yet)
        except OSError as fault:
            return str(fault)
        return None

    def ready(self, unit: dict[str, Any]) -> None:
        """Ask a unit once. Raises `NotReady` or `OSError`."""
        if unit.get("socket"):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(ASK_SECONDS)
                client.connect(unit["socket"])
        if unit.get("url"):
            self._ask(unit)

    def _ask(self, unit: dict[str, Any]) -> None:
        import http.client
        import ssl

        url = urlsplit(unit["url"])
        client: http.client.HTTPConnection
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=unit.get("ca"))
            if unit.get("certificate"):
                context.load_cert_chain(unit["certificate"], unit["key"])
            client = http.client.HTTPSConnection(url.netloc, timeout=ASK_SECONDS, context=context)
        else:
            client = http.client.HTTPConnection(url.netloc, timeout=ASK_SECONDS)
        try:
            client.request("GET", url.path or "/")
            answer = client.getresponse()
            text = answer.read(4096).decode(errors="replace")
        except http.client.HTTPException as fault:
            raise NotReady(repr(fault)) from None
        finally:
            client.close()
        if answer.status != http.client.OK:
            bad = [line for line in text.splitlines() if line.startswith("[-]")]
            raise NotReady(f"status {answer.status} {'; '.join(bad)}".strip())

    def _fault(self, what: str) -> UnitFault:
        """The state and the end of the journal of the first unit that does not run well."""
        shown = self.show()
        bad = [name for name in self.names if shown[name]["ActiveState"] != "active"] or self.names[-1:]
        unit = shown[bad[0]]
        journal = ["journalctl", f"--unit={bad[0]}", f"--lines={JOURNAL_LINES}", "--no-pager", "--output=cat"]
        _, lines, _ = self.run(journal)
        state = f"{unit['ActiveState']} ({unit['SubState']}), result {unit['Result']}"
        return UnitFault(
            f"{bad[0]} is {state}, exit status {unit['ExecMainStatus']}: {what}\n"
            f"The end of its journal:\n{lines.strip()}"
        )


def _restarts(now: dict[str, str], before: dict[str, str]) -> int:
    """How often systemd has restarted a unit since `before`."""
    return int(now["NRestarts"]) - int(before["NRestarts"])

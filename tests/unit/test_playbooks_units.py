"""The node side of a part's units: what is asked of systemd, and what is not."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.unit.test_playbooks_tree import code

units = code("underpass_units")

RUNNING = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "InvocationID": "1",
    "NeedDaemonReload": "no",
    "Result": "success",
    "ExecMainStatus": "0",
    "NRestarts": "0",
}


class Systemd:
    """A systemd with units `app` and `web`, and the notes of `unit-config`."""

    def __init__(self) -> None:
        self.units = {"app": dict(RUNNING), "web": dict(RUNNING)}
        self.noted = {"app": "1 fresh", "web": "1 fresh"}
        self.reads = {"app": ["/etc/app"], "web": ["/etc/web/conf"]}
        self.asked: list[list[str]] = []
        self.refuses: set[str] = set()

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        self.asked.append(argv)
        program, verb = Path(argv[0]).name, argv[1] if len(argv) > 1 else ""
        names = [word for word in argv[2:] if word in self.units]
        if program == "unit-config":
            if verb == "list":
                return 0, "".join(f"{name} {self.noted[name]}\n" for name in names if name in self.noted), ""
            return 0, "".join(f"{name} {path}\n" for name in names for path in self.reads[name]), ""
        if program == "journalctl":
            return 0, "the last words\n", ""
        if program != "systemctl":
            return int(program in self.refuses), "", ""
        if verb == "show":
            blocks = ["\n".join(f"{k}={v}" for k, v in self.units[name].items()) for name in names]
            return 0, "\n\n".join(blocks) + "\n", ""
        for name in names:
            self._act(verb, name)
        refused = [name for name in names if verb == "restart" and name in self.refuses]
        return (1, "", f"Job for {refused[0]} failed.") if refused else (0, "", "")

    def _act(self, verb: str, name: str) -> None:
        if verb in ("restart", "start"):
            state = "failed" if name in self.refuses else "active"
            self.units[name].update(ActiveState=state, InvocationID="2")
            self.noted[name] = "2 fresh"
        elif verb == "stop":
            self.units[name]["ActiveState"] = "inactive"
        elif verb in ("enable", "disable"):
            self.units[name]["UnitFileState"] = f"{verb}d"

    def verbs(self) -> list[str]:
        """What was done, questions left out."""
        acts = [argv for argv in self.asked if Path(argv[0]).name == "systemctl" and argv[1] != "show"]
        return [" ".join(word for word in argv[1:] if not word.startswith("-")) for argv in acts]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    there = tmp_path / "unit-config"
    there.touch()
    monkeypatch.setattr(units, "UNIT_CONFIG", there)
    monkeypatch.setattr(units, "PAUSE", 0.001)
    return Systemd()


def both(systemd: Systemd, *, check: bool = False, timeout: float = 5, **web: Any) -> Any:
    return units.Units([{"name": "app"}, {"name": "web", **web}], systemd, timeout=timeout, check=check)


NOTHING: dict[str, list[str]] = {"enabled": [], "started": [], "restarted": []}


def test_units_that_run_as_they_should_are_left_alone(systemd: Systemd) -> None:
    assert both(systemd).started([]) == NOTHING
    assert systemd.verbs() == []


def test_a_stopped_unit_is_started(systemd: Systemd) -> None:
    systemd.units["web"]["ActiveState"] = "failed"
    assert both(systemd).started([]) == {**NOTHING, "started": ["web"]}
    assert systemd.verbs() == ["reset-failed web", "restart web"]


def test_a_disabled_unit_is_enabled_and_not_restarted(systemd: Systemd) -> None:
    systemd.units["app"]["UnitFileState"] = "disabled"
    assert both(systemd).started([]) == {**NOTHING, "enabled": ["app"]}
    assert systemd.verbs() == ["enable app"]


@pytest.mark.parametrize("note", ["1 stale", "0 fresh", None])
def test_a_unit_started_with_other_files_is_restarted(systemd: Systemd, note: str | None) -> None:
    """Also one whose note is of an earlier start, and one that was never noted."""
    if note:
        systemd.noted["app"] = note
    else:
        del systemd.noted["app"]
    assert both(systemd).started([]) == {**NOTHING, "restarted": ["app"]}
    assert systemd.verbs() == ["restart app"]


def test_files_that_were_mended_under_a_unit_that_never_saw_them_restart_nothing(systemd: Systemd) -> None:
    assert both(systemd).started(["/etc/app/conf"]) == NOTHING


def test_units_are_restarted_in_their_order_and_at_once(systemd: Systemd) -> None:
    systemd.noted["app"] = "1 stale"
    systemd.units["web"]["ActiveState"] = "inactive"
    both(systemd).started([])
    assert systemd.verbs()[-1] == "restart app web"


def test_changed_unit_files_are_loaded_first(systemd: Systemd) -> None:
    systemd.units["app"]["NeedDaemonReload"] = "yes"
    both(systemd).started([])
    assert systemd.verbs() == ["daemon-reload"]
    systemd.asked.clear()
    systemd.units["app"]["NeedDaemonReload"] = "no"
    both(systemd).started(["/etc/systemd/system/app.service"])
    assert systemd.verbs() == ["daemon-reload"]


def test_work_that_was_undone_is_done_again(systemd: Systemd) -> None:
    systemd.refuses.add("is-it-done")
    part = units.Units([{"name": "app", "check": ["is-it-done"]}], systemd, timeout=5, check=False)
    assert part.started([]) == {**NOTHING, "restarted": ["app"]}


def test_a_check_asks_and_does_nothing(systemd: Systemd) -> None:
    systemd.units["web"].update(ActiveState="inactive", UnitFileState="disabled", NeedDaemonReload="yes")
    would = both(systemd, check=True).started(["/etc/app/conf"])
    assert would == {"enabled": ["web"], "started": ["web"], "restarted": ["app"]}
    assert systemd.verbs() == []


def test_a_unit_that_does_not_start_is_a_fault_with_its_journal(systemd: Systemd) -> None:
    systemd.units["web"]["ActiveState"] = "inactive"
    systemd.refuses.add("web")
    with pytest.raises(units.UnitFault, match=r"(?s)web is failed.*Job for web failed.*the last words"):
        both(systemd).started([])


def test_a_masked_unit_is_a_fault_and_nothing_is_done(systemd: Systemd) -> None:
    systemd.units["web"].update(UnitFileState="masked", ActiveState="inactive")
    with pytest.raises(units.UnitFault, match="masked by hand: web"):
        both(systemd).started([])
    assert systemd.verbs() == []


def test_stopping_goes_backwards(systemd: Systemd) -> None:
    assert both(systemd).stopped() == ["app", "web"]
    assert systemd.verbs() == ["stop web", "stop app", "disable app web"]
    assert both(systemd).stopped() == []


class Health(http.server.BaseHTTPRequestHandler):
    """Answers as the list says, one after the other; the last one stays."""

    answers: ClassVar[list[tuple[int, bytes]]]

    def do_GET(self) -> None:  # the name is the base class's
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def health() -> Iterator[tuple[str, type[Health]]]:
    class Own(Health):
        answers: ClassVar[list[tuple[int, bytes]]] = [(200, b"ok")]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/readyz", Own
        server.shutdown()


def test_readiness_is_waited_for(systemd: Systemd, health: tuple[str, type[Health]]) -> None:
    url, server = health
    server.answers = [(500, b"[-]etcd failed"), (500, b""), (200, b"ok")]
    assert both(systemd, url=url).started([]) == NOTHING
    assert len(server.answers) == 1


def test_what_is_not_ready_in_time_says_why(systemd: Systemd, health: tuple[str, type[Health]]) -> None:
    url, server = health
    server.answers = [(500, b"[+]ping ok\n[-]etcd failed: reason withheld")]
    with pytest.raises(units.UnitFault, match=r"web is not ready.*status 500 \[-\]etcd failed"):
        both(systemd, url=url, timeout=0.2).started([])


def test_ends_before_what_a_unit_needs_was_ready_do_not_count(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "LOOK_EVERY", 1)
    part = both(systemd, timeout=600)
    show = part.show
    answers: dict[str, list[str | None]] = {"app": ["not yet"] * 5 + [None], "web": ["not yet", None]}

    def restarting() -> Any:
        systemd.units["web"]["NRestarts"] = str(int(systemd.units["web"]["NRestarts"]) + 1)
        return show()

    monkeypatch.setattr(part, "show", restarting)
    monkeypatch.setattr(part, "answer", lambda unit: answers[unit["name"]].pop(0))
    assert part.started([]) == NOTHING
    assert answers == {"app": [], "web": []}


def test_a_unit_that_ends_again_and_again_is_not_waited_for(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "LOOK_EVERY", 1)
    part = both(systemd, socket="/nowhere/to/be/found", timeout=600)
    show = part.show

    def restarting() -> Any:
        systemd.units["web"]["NRestarts"] = str(int(systemd.units["web"]["NRestarts"]) + 1)
        return show()

    monkeypatch.setattr(part, "show", restarting)
    with pytest.raises(units.UnitFault, match="ends again and again"):
        part.started([])

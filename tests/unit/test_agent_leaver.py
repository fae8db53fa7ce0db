"""Which senders leave redirect, and what the agent does about it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.redirect.choice import SLOW_READER, SMALL_MESSAGES, Carried, Limits, Watch, better_by_tcp
from agent.redirect.explain import Staying
from agent.redirect.leaver import Leaver, carried
from datapath import libbpf, reasons
from datapath.constants import DepartureStep, Meeting, Obstacle, Side
from datapath.redirect_tables import Departure, SocketKey, SocketState, Stream

LIMITS = Limits(looks=3, tries=4, patience=2, rest=60.0)
NOTHING = Carried(0, 0, 0, 0)
MANY = LIMITS.small_per_second + 1
BEHIND = LIMITS.behind_bytes_per_second


def plus(one: Carried, more: Carried) -> Carried:
    return Carried(
        one.messages + more.messages,
        one.bytes + more.bytes,
        one.tcp_messages + more.tcp_messages,
        one.tcp_bytes + more.tcp_bytes,
        more.behind,
    )


def redirected(messages: int, size: int) -> Carried:
    return Carried(messages, messages * size, 0, 0)


@pytest.mark.parametrize(
    ("sent", "back", "reason"),
    [
        (redirected(MANY, 64), NOTHING, SMALL_MESSAGES),
        (redirected(MANY, 127), NOTHING, SMALL_MESSAGES),
        (redirected(MANY, 128), NOTHING, None),
        (redirected(LIMITS.small_per_second, 64), NOTHING, None),
        (redirected(MANY, 64), redirected(MANY // 100, 8), SMALL_MESSAGES),
        (redirected(MANY, 64), redirected(MANY // 100 + 1, 8), None),
        (redirected(MANY, 64), Carried(0, 0, MANY, 8 * MANY), None),
        (Carried(10, 64 * 10, MANY, 64 * MANY, True), NOTHING, SMALL_MESSAGES),
        (Carried(2, 32_768, 1000, 2 * BEHIND, True), NOTHING, SLOW_READER),
        (Carried(2, 32_768, 1000, 2 * BEHIND, False), NOTHING, None),
        (Carried(2, BEHIND, 1000, 2 * BEHIND, True), NOTHING, None),
        (Carried(0, 0, 1000, BEHIND - 1, True), NOTHING, None),
        (Carried(2, 32_768, 1000, 2 * BEHIND, True), redirected(20, 8), None),
        (NOTHING, NOTHING, None),
    ],
)
def test_who_is_better_off_with_tcp(sent: Carried, back: Carried, reason: str | None) -> None:
    assert better_by_tcp(sent, back, 1.0, LIMITS) == reason
    assert better_by_tcp(plus(sent, sent), plus(back, back), 2.0, LIMITS) == reason


counts = st.integers(0, 10**9)
directions = st.builds(Carried, counts, counts, counts, counts, st.booleans())


@given(directions, directions)
def test_of_two_directions_at_most_one_sender_leaves(one: Carried, other: Carried) -> None:
    assert not (better_by_tcp(one, other, 1.0, LIMITS) and better_by_tcp(other, one, 1.0, LIMITS))


def test_a_stream_has_to_be_one_at_several_looks_one_after_the_other() -> None:
    watch: Watch[str] = Watch(LIMITS)
    total, at, chosen = 0, 100.0, []
    for more in (MANY, MANY, MANY, 1, MANY, MANY, MANY, MANY):
        total, at = total + more, at + 1
        chosen.append(watch.look({"a": redirected(total, 64), "b": NOTHING}, {"a": "b", "b": "a"}, at))
    # The first look has nothing to compare with, and the fourth sees a pause.
    assert chosen == [{}, {}, {}, {}, {}, {}, {"a": SMALL_MESSAGES}, {"a": SMALL_MESSAGES}]
    watch.forget()
    assert watch.look({"a": redirected(total + MANY, 64)}, {}, at + 1) == {}


def test_another_reason_begins_anew() -> None:
    watch: Watch[str] = Watch(LIMITS)
    small, slow = redirected(MANY, 64), Carried(0, 0, 100, 10 * BEHIND, True)
    total, found = NOTHING, []
    for at, more in enumerate((NOTHING, small, slow, slow, slow), 1):
        total = plus(total, more)
        found.append(watch.look({"a": total}, {}, float(at)))
    assert found == [{}, {}, {}, {}, {"a": SLOW_READER}]


def key(side: Side = Side.CLIENT, cookie: int = 7) -> SocketKey:
    return SocketKey(cookie=cookie, generation=1, side=side)


def stream(side: Side, **more: Any) -> Stream:
    blank = Stream.unpack(bytes(Stream.size()))
    given: dict[str, Any] = {"side": side, "meeting": Meeting.MET, "client_endpoint": 1, "server_endpoint": 2}
    return dataclasses.replace(blank, **given | more)


def test_counters_are_read_out_of_the_maps_bytes() -> None:
    behind = reasons.by_label()["READER_BEHIND"].number
    rows = {
        key(): stream(Side.CLIENT, messages=1, redirected=2, tcp_messages=3, tcp_bytes=4),
        key(Side.SERVER): stream(Side.SERVER, messages=5, reason=behind),
        key(cookie=8): stream(Side.CLIENT, messages=9, meeting=Meeting.OPEN),
        key(cookie=9): stream(Side.CLIENT, messages=9, meeting=Meeting.PARTED | 31 << 8),
    }
    found = carried((name.pack(), one.pack()) for name, one in rows.items())
    assert found == {key(): Carried(1, 2, 3, 4), key(Side.SERVER): Carried(5, 0, 0, 0, True)}


class Table(dict[Any, Any]):
    """A typed map."""

    fd = -1

    def read(self) -> dict[Any, Any]:
        return dict(self)

    def put(self, name: Any, value: Any) -> None:
        self[name] = value

    def delete(self, name: Any) -> bool:
        return self.pop(name, None) is not None


class Kernel:
    """The maps, and a socket on which `obstacles` stand in the way, one at each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams, self.entries = Table(), Table()
        self.obstacles: list[Obstacle] = []
        self.steps = 0
        self.cpus = {"same_cpu": 1, "other_cpu": 9}
        self.redirect = SimpleNamespace(streams=self.streams, sockets=self._sockets)
        self.departures = self
        self.metrics = SimpleNamespace(get=self._count)
        self.scans = 0
        monkeypatch.setattr(libbpf, "map_items", self._items)

    def _sockets(self) -> list[SocketState]:
        blank = SocketState.unpack(bytes(SocketState.size()))
        given: dict[str, Any] = {"cookie": key().cookie, "generation": key().generation, **self.cpus}
        return [dataclasses.replace(blank, side=Side.SERVER, **given)]

    def _count(self, label: str, _place: object) -> int:
        return sum(
            one.messages if label == "REDIRECTED" else one.tcp_messages for one in self.streams.values()
        )

    def _items(self, *_: object) -> Any:
        self.scans += 1
        return [(name.pack(), one.pack()) for name, one in self.streams.items()]

    def send(self, messages: int) -> None:
        before = self.streams[key()]
        self.streams[key()] = dataclasses.replace(
            before, messages=before.messages + messages, redirected=before.redirected + 64 * messages
        )

    def ask(self, name: SocketKey, reason: reasons.Reason) -> None:
        self.entries[name] = Departure(step=DepartureStep.ASKED, reason=reason.number)

    def give_up(self, name: SocketKey) -> None:
        del self.entries[name]

    def step(self) -> None:
        self.steps += 1
        for name, found in self.entries.items():
            obstacle = self.obstacles.pop(0) if self.obstacles else Obstacle.NONE
            further = found.step + (obstacle == Obstacle.NONE)
            self.entries[name] = dataclasses.replace(found, step=further, obstacle=obstacle)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(monkeypatch)
    made.streams.update({key(side): stream(side) for side in Side})
    return made


class Agent:
    def __init__(self, kernel: Kernel, pods: dict[int, str]) -> None:
        self.kernel = kernel
        self.log: list[dict[str, Any]] = []
        self.leaver = Leaver(
            kernel,  # type: ignore[arg-type]
            pods.get,
            lambda _level, message, **more: self.log.append({"message": message, **more}),
            LIMITS,
        )
        self.now = 0.0

    def look(self, messages: int = 0) -> None:
        self.kernel.send(messages)
        self.now += 1
        self.leaver.look(self.now)


@pytest.fixture
def agent(kernel: Kernel) -> Agent:
    return Agent(kernel, dict.fromkeys((1, 2), f"/proc/{os.getpid()}/ns/net"))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="enters a network namespace")


@needs_root
def test_a_sender_is_taken_out_step_by_step_and_told_of(agent: Agent, kernel: Kernel) -> None:
    kernel.obstacles = [Obstacle.IN_USE, Obstacle.NONE, Obstacle.IN_USE]
    for _ in range(LIMITS.looks + 1):
        agent.look(MANY)
    assert kernel.steps == LIMITS.tries
    assert not kernel.entries
    (told,) = agent.log
    assert (told["message"], told["side"], told["reason"]) == (
        "sender has left redirect",
        "client",
        "small-messages",
    )


@needs_root
def test_unread_bytes_are_waited_for_until_the_next_look(agent: Agent, kernel: Kernel) -> None:
    kernel.obstacles = [Obstacle.NONE, Obstacle.UNREAD]
    for _ in range(LIMITS.looks + 1):
        agent.look(MANY)
    assert (kernel.steps, agent.log) == (2, [])
    agent.look()
    assert (kernel.steps, len(agent.log)) == (3, 1)


@needs_root
def test_a_sender_that_cannot_leave_is_let_be_for_a_while(agent: Agent, kernel: Kernel) -> None:
    kernel.obstacles = [Obstacle.IN_USE] * 100
    for _ in range(LIMITS.looks):
        agent.look(MANY)
    assert agent.leaver.staying() == {}
    for _ in range(1 + LIMITS.patience):
        agent.look(MANY)
        assert agent.leaver.staying() == {key(): Staying("small-messages", "in-use")}
    assert not kernel.entries
    (told,) = agent.log
    assert (told["message"], told["obstacle"]) == ("sender does not leave redirect", "in-use")
    steps = kernel.steps
    for _ in range(int(LIMITS.rest) - 1):
        agent.look(MANY)
    assert kernel.steps == steps
    assert agent.leaver.staying() == {key(): Staying("small-messages", "in-use")}
    kernel.obstacles = []
    agent.look(MANY)
    assert agent.log[-1]["message"] == "sender has left redirect"
    assert agent.leaver.staying() == {}


def test_small_messages_stay_redirected_where_both_ends_share_a_cpu(agent: Agent, kernel: Kernel) -> None:
    kernel.cpus = {"same_cpu": 9, "other_cpu": 1}
    for _ in range(2 * LIMITS.looks):
        agent.look(MANY)
    assert not kernel.entries


def test_nothing_is_looked_at_where_little_is_sent(agent: Agent, kernel: Kernel) -> None:
    for _ in range(10):
        agent.look(LIMITS.small_per_second)
    assert kernel.scans == 0
    agent.look(MANY)
    assert kernel.scans == 1


@needs_root
def test_a_pod_that_is_going_away_keeps_no_other_from_leaving(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "netns").touch()  # what is left of a namespace's name when it is unmounted
    agent = Agent(kernel, {1: str(tmp_path / "netns"), 2: f"/proc/{os.getpid()}/ns/net"})
    small = reasons.by_label()["SMALL_MESSAGES"].number
    for side in Side:
        kernel.entries[key(side)] = Departure(step=DepartureStep.PARTED, reason=small)
    agent.look()
    assert [told["message"] for told in agent.log] == ["senders not taken out", "sender has left redirect"]


def test_what_is_left_over_is_cleared_away(kernel: Kernel) -> None:
    """Of connections that closed meanwhile, and of a former agent; without its pod nothing is tried."""
    agent = Agent(kernel, {})
    small = reasons.by_label()["SMALL_MESSAGES"].number
    kernel.entries[key(cookie=99)] = Departure(step=DepartureStep.PARTED, reason=small)
    kernel.entries[key()] = Departure(step=DepartureStep.LEFT, reason=small)
    kernel.entries[key(Side.SERVER)] = Departure(step=DepartureStep.ASKED, reason=small)
    agent.look()
    assert set(kernel.entries) == {key(Side.SERVER)}
    assert kernel.steps == 0

"""The address book: no address is given twice or lost, whatever ends at whatever moment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.ipam import Attachment, Ipam, RangeFullError, StateError
from tests.sizes import SIZES


def attachment(container: str, interface: str = "eth0") -> Attachment:
    return Attachment(
        container=container,
        interface=interface,
        address="",
        namespace="default",
        pod="pod",
        pod_uid="uid",
        netns="/run/netns/x",
        host_interface="podx",
        mac="02:00:00:00:00:01",
        since=0.0,
    )


@pytest.fixture
def book(tmp_path: Path) -> Ipam:
    ipam = Ipam(tmp_path / "addresses.json")
    ipam.set_ranges(["10.1.2.0/28"])
    return ipam


def test_an_address_lies_in_the_range_and_is_neither_its_ends_nor_the_nodes_own(book: Ipam) -> None:
    given_out = {book.allocate(attachment(str(number))).address for number in range(book.capacity)}
    assert given_out == {f"10.1.2.{number}" for number in range(2, 15)}
    with pytest.raises(RangeFullError):
        book.allocate(attachment("one-too-many"))


def test_the_same_attachment_keeps_its_address_and_number(book: Ipam) -> None:
    first = book.allocate(attachment("a"))
    again = book.allocate(attachment("a"))
    assert (again.address, again.endpoint) == (first.address, first.endpoint)
    assert len(book.all()) == 1


def test_a_released_address_and_number_come_back_last(book: Ipam) -> None:
    first = book.allocate(attachment("a"))
    book.release("a", "eth0")
    others = [book.allocate(attachment(f"b{number}")) for number in range(book.capacity - 1)]
    assert first.address not in {other.address for other in others}
    assert first.endpoint not in {other.endpoint for other in others}
    assert book.allocate(attachment("last")).address == first.address


def test_releasing_twice_and_releasing_the_unknown_do_nothing(book: Ipam) -> None:
    book.allocate(attachment("a"))
    assert book.release("a", "eth0") is not None
    assert book.release("a", "eth0") is None
    assert book.release("never", "eth0") is None


def test_a_late_release_does_not_take_the_address_from_its_next_holder(book: Ipam) -> None:
    ipam_address = book.allocate(attachment("old")).address
    book.release("old", "eth0")
    for number in range(book.capacity - 1):
        book.allocate(attachment(f"x{number}"))
    successor = book.allocate(attachment("new"))
    assert successor.address == ipam_address
    book.release("old", "eth0")
    held = book.get("new", "eth0")
    assert held is not None
    assert held.address == ipam_address


def test_what_was_given_out_is_known_after_a_restart(tmp_path: Path, book: Ipam) -> None:
    ready = book.finish(book.allocate(attachment("a")))
    pending = book.allocate(attachment("b"))
    again = Ipam(tmp_path / "addresses.json")
    assert {a.container: a for a in again.all()} == {"a": ready, "b": pending}
    assert again.allocate(attachment("c")).address not in (ready.address, pending.address)


def test_an_attachment_that_was_released_meanwhile_is_not_finished(book: Ipam) -> None:
    pending = book.allocate(attachment("a"))
    book.release("a", "eth0")
    with pytest.raises(KeyError):
        book.finish(pending)


def test_holders_keep_their_addresses_when_the_range_changes(book: Ipam) -> None:
    old = book.allocate(attachment("a"))
    book.set_ranges(["10.9.9.0/29"])
    assert book.get("a", "eth0") == old
    assert book.allocate(attachment("b")).address.startswith("10.9.9.")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"layout": 99}', '{"layout": 1}'])
def test_a_book_that_cannot_be_read_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "addresses.json"
    path.write_text(content)
    with pytest.raises(StateError, match=r"addresses\.json"):
        Ipam(path)
    assert path.read_text() == content


def test_a_book_in_which_an_address_has_two_holders_is_refused(tmp_path: Path, book: Ipam) -> None:
    book.allocate(attachment("a"))
    path = tmp_path / "addresses.json"
    data = json.loads(path.read_text())
    data["attachments"].append({**data["attachments"][0], "container": "b"})
    path.write_text(json.dumps(data))
    with pytest.raises(StateError, match="held twice"):
        Ipam(path)


def test_the_book_is_for_root_alone(tmp_path: Path, book: Ipam) -> None:
    book.allocate(attachment("a"))
    assert (tmp_path / "addresses.json").stat().st_mode & 0o777 == 0o600


class CrashError(BaseException):
    """The process ends here."""


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "finish", "delete"]), st.integers(0, 11), st.sampled_from([None, 0, 1, 2, 3])
    ),
    max_size=40,
)


@settings(
    max_examples=SIZES.address_books,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps)
def test_no_crash_at_any_write_gives_an_address_twice_or_loses_one(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, int, int | None]]
) -> None:
    """`plan`: what to do for which container, and at which system call of its write the process ends."""
    path = tmp_path_factory.mktemp("book") / "addresses.json"
    book = Ipam(path)
    book.set_ranges(["10.1.2.0/28"])
    promised: dict[str, str] = {}  # addresses that an ADD has returned
    for action, number, crash in plan:
        container = str(number)
        with crashing(crash):
            try:
                if action == "add":
                    promised[container] = book.allocate(attachment(container)).address
                elif action == "finish" and (held := book.get(container, "eth0")) is not None:
                    book.finish(held)
                elif action == "delete":
                    book.release(container, "eth0")
                    promised.pop(container, None)
            except CrashError:
                if action == "delete":
                    promised.pop(container, None)  # unanswered: the runtime asks again, either is right
                book = Ipam(path)
        held_now = {a.container: a.address for a in book.all()}
        assert len(set(held_now.values())) == len(held_now)
        for holder, address in promised.items():
            assert held_now.get(holder) == address
        on_disk = {a.container: a.address for a in Ipam(path).all()}
        assert on_disk == held_now


class crashing:  # noqa: N801
    """Ends the process (raises CrashError) at the given system call of a write; None for never."""

    def __init__(self, at: int | None) -> None:
        self._at = at
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        calls = [(os, "fsync"), (os, "replace"), (os, "fsync")]
        count = 0
        if self._at is None:
            return
        originals = {name: getattr(owner, name) for owner, name in calls}

        def dying(name: str) -> object:
            def call(*arguments: object) -> object:
                nonlocal count
                if count == self._at:
                    raise CrashError
                count += 1
                return originals[name](*arguments)

            return call

        for name in originals:
            self._patch.setattr(os, name, dying(name))

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

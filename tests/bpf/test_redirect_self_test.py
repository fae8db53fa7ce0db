"""The agent's self-test tells whether socket redirect works here (hazard 21)."""

from __future__ import annotations

from agent.redirect import selftest
from datapath import libbpf
from datapath.constants import REDIRECT_SLOT
from tests.bpf.redirecting import redirect_config
from tests.bpf.sandbox import Node


def test_hazard_21_in_the_nodes_own_control_group_it_works(node: Node) -> None:
    before = set(node.maps.namespaces.read())
    with node.in_cgroup():
        outcome = selftest.run(node.maps, enabled=True)
    assert outcome.works, outcome.detail
    assert set(node.maps.namespaces.read()) == before


def test_hazard_21_in_another_control_group_it_says_so(node: Node) -> None:
    outcome = selftest.run(node.maps, enabled=True)
    assert outcome.works is False
    assert "another control group" in outcome.detail


def test_hazard_21_programs_that_do_not_redirect_are_found(node: Node) -> None:
    senders = libbpf.open_pinned(node.pins / "maps" / "senders")
    slot, program = REDIRECT_SLOT.to_bytes(4, "little"), node.program("message_send")
    try:
        libbpf.map_delete(senders, slot)
        with node.in_cgroup():
            outcome = selftest.run(node.maps, enabled=True)
        assert outcome.works is False
        assert "went by TCP" in outcome.detail
    finally:
        libbpf.map_update(senders, slot, program.to_bytes(4, "little"))


def test_hazard_21_a_switch_that_is_off_is_told_from_a_fault(node: Node) -> None:
    with redirect_config(node, on=False), node.in_cgroup():
        assert selftest.run(node.maps, enabled=False).works is None
        assert "redirect-off" in selftest.run(node.maps, enabled=True).detail

"""The API server goes away: traffic and policy stay as they were, and what changed is caught up with."""

from __future__ import annotations

import time
from typing import Any

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.test_restarts import CLOSED, PORT, close, everything, judge, summary
from tests.lab.network.town import METRICS, Town, agents_ready, ask, underpass
from tests.lab.waiting import until
from tests.sizes import SIZES

CHANGE_SECONDS = 30
CONFLIST = "/etc/cni/net.d/10-underpass.conflist"


def api(lab: Rendered, cluster: Cluster, verb: str) -> None:
    """Stop, start or restart the API server; when it is to be there, wait until it is."""
    ask(lab, lab.control_plane.name, ["systemctl", verb, "kube-apiserver"])
    if verb != "stop":
        until(lambda: cluster.health() == "ok", "the API server is back", 90)


def configured(lab: Rendered, node: str) -> bool:
    """Whether the node's container runtime is told of our network."""
    return ask(lab, node, ["sh", "-c", f"ls {CONFLIST} 2>/dev/null || true"]) != ""


def closed_to(town: Town, client: str) -> bool:
    return town.probe(client, [("tcp", town.address[CLOSED], PORT)], 0.5) == ["ETIMEDOUT"]


def test_traffic_and_policy_outlive_an_absent_api_server(
    lab: Rendered, cluster: Cluster, policies: Town, evidence: Evidence
) -> None:
    """With no API server, and agents restarted meanwhile, no flow notices; then a new policy is enforced"""
    town = policies
    close(town)
    before = len(town.came(CLOSED, PORT))
    with town.flowing(everything(town)) as flows:
        api(lab, cluster, "stop")
        try:
            deadline = time.monotonic() + SIZES.api_away_seconds
            last = lab.nodes[-1].name
            until(lambda: not underpass(lab, last, "status")["kubernetes"]["reachable"], "it is missed", 30)
            ask(lab, last, ["sh", "-c", f"systemctl kill --signal=KILL underpass-agent; rm {CONFLIST}"])
            while time.monotonic() < deadline:
                time.sleep(1)  # the absence itself is what is tested, not waited for
            code = f"curl -s -o /dev/null -w %{{http_code}} {METRICS}/healthz"
            assert ask(lab, last, ["sh", "-c", code]) == "503", "it cannot know the cluster"
            assert not configured(lab, last), "the runtime is not told of a network that would refuse"
        finally:
            api(lab, cluster, "start")
        agents_ready(lab, 90)
    until(lambda: configured(lab, last), "the network configuration is there again", 20)
    evidence(f"{SIZES.api_away_seconds} s: {summary(flows)}")
    judge(flows, town.came(CLOSED, PORT)[before:])
    town.pods(CLOSED).cluster.kubectl("delete", "networkpolicy", "closed", "-n", "red")
    until(lambda: not closed_to(town, "r0"), "a change is followed again", CHANGE_SECONDS)


def test_a_history_that_is_gone_is_caught_up_with(
    lab: Rendered, cluster: Cluster, policies: Town, evidence: Evidence
) -> None:
    """An agent that slept through changes, whose versions the API server no longer has (410), lists again"""
    town = policies
    close(town)
    node = lab.nodes[-1].name  # the closed resident is there
    since = ask(lab, node, ["date", "+%s"]).strip()
    ask(lab, node, ["systemctl", "kill", "--signal=STOP", "underpass-agent"])
    try:
        cluster.kubectl("delete", "networkpolicy", "closed", "-n", "red")
        town.spaces["blue"].apply(_egress_closed())
        assert closed_to(town, "r0"), "an agent that sleeps changes nothing"
        api(lab, cluster, "restart")
    finally:
        ask(lab, node, ["systemctl", "kill", "--signal=CONT", "underpass-agent"])
    until(lambda: not closed_to(town, "r0"), "what was deleted meanwhile is gone", CHANGE_SECONDS)
    until(lambda: _mute(town), "what was made meanwhile is there", CHANGE_SECONDS)
    journal = ["journalctl", "-u", "underpass-agent", f"--since=@{since}", "-o", "cat"]
    gone = [line for line in ask(lab, node, journal).splitlines() if "history is gone" in line]
    evidence(f"{len(gone)} watches were told that their history is gone")
    assert gone


def _egress_closed() -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "mute"},
        "spec": {"podSelector": {"matchLabels": {"tier": "x"}}, "policyTypes": ["Egress"]},
    }


def _mute(town: Town) -> bool:
    return town.probe("r2", [("tcp", town.address["r3"], PORT)], 0.5) == ["ETIMEDOUT"]

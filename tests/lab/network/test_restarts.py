"""Agents are killed, restarted and upgraded, programs are replaced: running traffic does not notice."""

from __future__ import annotations

import json
import time
from typing import Any

from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.conftest import Evidence
from tests.lab.network.town import Town, agents_ready, ask
from tests.lab.waiting import until
from tests.sizes import SIZES

PORT = 8080
PYTHON = "PYTHONPATH=/opt/underpass/lib:/opt/underpass/current/node-python/site python3 -P -m"
LOADER = f"{PYTHON} datapath.loader {{}} --config /run/underpass/datapath-config.json"
CLOSED = "r4"


def close(town: Town) -> None:
    """Let nobody into one resident, and wait until that is so."""
    town.pods(CLOSED).apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "closed"},
            "spec": {"podSelector": {"matchLabels": {"app": "c"}}, "policyTypes": ["Ingress"]},
        }
    )
    target = ("tcp", town.address[CLOSED], PORT)
    until(lambda: town.probe("r0", [target], 0.5) == ["ETIMEDOUT"], "the resident is closed")


def everything(town: Town) -> dict[str, list[tuple[str, str, int]]]:
    """Flows of every kind, within a node and across, and knocks at the closed resident from both nodes."""
    near, far, shut = (town.address[name] for name in ("r3", "r1", CLOSED))
    kinds = ("stream", "datagrams", "fresh")
    return {
        "r0": [(kind, to, PORT) for to in (near, far) for kind in kinds] + [("knock", shut, PORT)],
        "r2": [("knock", shut, PORT), ("stream", near, PORT)],
    }


def loaded(lab: Rendered) -> set[str]:
    """The digests of the sources whose programs the nodes run."""
    return {
        json.loads(ask(lab, node.name, ["sh", "-c", LOADER.format("status")]))["source"] for node in lab.nodes
    }


def judge(flows: list[dict[str, Any]], reached: list[Any]) -> None:
    """What is allowed has lost nothing, and nothing of what is denied has arrived."""
    for flow in flows:
        assert flow["sent"] > 10, flow
        if flow["kind"] == "knock":
            assert flow["received"] == 0, flow
        else:
            assert (flow["received"], flow["fault"]) == (flow["sent"], ""), flow
    assert reached == [], "the closed resident got something"


def summary(flows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{f['kind']} {f['received']}/{f['sent']}" for f in flows)


def test_agents_are_killed_and_restarted_and_programs_replaced(
    lab: Rendered, policies: Town, evidence: Evidence
) -> None:
    """No byte of a connection is lost, no allowed datagram, and no denied packet arrives"""
    town = policies
    close(town)
    before = len(town.came(CLOSED, PORT))
    with town.flowing(everything(town)) as flows:
        for number in range(SIZES.agent_restarts):
            for node in lab.nodes:
                how = "kill --signal=KILL" if number % 3 else "restart"
                ask(lab, node.name, ["sh", "-c", f"systemctl {how} underpass-agent"])
            if number % 3 == 1:
                for node in lab.nodes:
                    ask(lab, node.name, ["sh", "-c", LOADER.format("up --force")])
            agents_ready(lab)
    evidence(f"{SIZES.agent_restarts} times: {summary(flows)}")
    judge(flows, town.came(CLOSED, PORT)[before:])


#: What the other release has in two of its files, and nothing of ours.
MARK = "made-another-by-a-test"


def test_another_release_of_agent_and_programs_and_back(
    lab: Rendered, command: LabCommand, policies: Town, evidence: Evidence
) -> None:
    """`lab upgrade` exchanges agents and programs under running traffic"""
    town = policies
    close(town)
    before = len(town.came(CLOSED, PORT))
    other = (
        f"echo '/* {MARK} */' >>/opt/underpass/lib/datapath/src/pod_egress.c && "
        f"echo '# {MARK}' >>/opt/underpass/lib/agent/daemon.py && "
        "systemctl restart underpass-datapath underpass-agent"
    )
    sources = [loaded(lab)]
    with town.flowing(everything(town)) as flows:
        for node in lab.nodes:
            ask(lab, node.name, ["sh", "-c", other])
        agents_ready(lab)
        sources.append(loaded(lab))
        began = time.monotonic()
        done = command.json("upgrade")
        agents_ready(lab)
        took = time.monotonic() - began
        sources.append(loaded(lab))
    assert done["changed"] > 0
    assert sources[0] == sources[2] and not sources[0] & sources[1], "programs of other sources ran meanwhile"
    for node in lab.nodes:
        assert ask(lab, node.name, ["sh", "-c", f"grep -rl {MARK} /opt/underpass/lib || true"]) == ""
    evidence(f"upgrade in {took:.0f} s: {summary(flows)}")
    judge(flows, town.came(CLOSED, PORT)[before:])

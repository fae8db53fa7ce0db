"""The real plugin and agent of a node under a storm of sandboxes: no address is leaked or given twice."""

from __future__ import annotations

import json
from typing import Any

from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.town import Town, agents_ready, ask, configured, program, underpass
from tests.lab.waiting import until
from tests.sizes import SIZES

SECONDS_A_ROUND = 240


def test_a_storm_of_sandboxes_through_kills_leaks_no_address(lab: Rendered, evidence: Evidence) -> None:
    """Many ADD and DEL at once, plugin and agent killed at random: each address once, and all come back"""
    node = lab.nodes[-1].name
    agents_ready(lab)
    command = program("storm", str(SIZES.lab_cni_parallel), str(SIZES.lab_cni_rounds), "20")
    told = json.loads(ask(lab, node, command, SECONDS_A_ROUND * SIZES.lab_cni_rounds))
    evidence(
        f"{told['adds']} ADDs, {told['killed_plugins']} plugins and {told['killed_agents']} agents killed"
    )
    assert told["faults"] == []
    assert told["adds"] == SIZES.lab_cni_parallel * SIZES.lab_cni_rounds
    assert told["killed_plugins"] > 0
    assert told["killed_agents"] > 0
    agents_ready(lab)


ADD = (
    'ip netns add lost; echo \'{"cniVersion": "1.0.0", "name": "underpass", "type": "underpass-cni"}\' | '
    "CNI_COMMAND=ADD CNI_CONTAINERID=lost CNI_NETNS=/run/netns/lost CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin "
    "/opt/cni/bin/underpass-cni"
)
BOOK = "/var/lib/underpass/addresses.json"


def test_a_sandbox_that_containerd_does_not_know_gives_its_address_back(
    lab: Rendered, town: Town, evidence: Evidence
) -> None:
    """An ADD whose DEL never came: the agent takes it down, and nothing else"""
    node = lab.nodes[-1].name
    agents_ready(lab)

    def held() -> dict[str, Any]:
        return {one["container"]: one for one in json.loads(ask(lab, node, ["cat", BOOK]))["attachments"]}

    def residents() -> set[str]:
        return {container for container, one in held().items() if one["namespace"] in town.spaces}

    before = residents()
    try:
        address = json.loads(ask(lab, node, ["sh", "-c", ADD]))["ips"][0]["address"]
        link = held()["lost"]["host_interface"]
        with configured(lab, sandbox_wait_seconds=SIZES.sandbox_wait_seconds):
            until(lambda: "lost" not in held(), "the address is free", 4 * SIZES.sandbox_wait_seconds + 30)
            links = ask(lab, node, ["ip", "-br", "link", "show", "type", "veth"])
        assert link not in links
        assert before
        assert residents() == before
        assert {one["pod"] for one in underpass(lab, node, "endpoints")} >= {
            f"{one.namespace}/{one.name}" for one in town.residents.values() if one.node.name == node
        }
        evidence(f"{address} came back")
    finally:
        ask(lab, node, ["sh", "-c", "ip netns del lost || true"])

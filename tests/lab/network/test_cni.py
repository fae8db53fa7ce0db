"""The real plugin and agent of a node under a storm of sandboxes: no address is leaked or given twice."""

from __future__ import annotations

import json

from lab.render import Rendered
from tests.lab.conftest import Evidence
from tests.lab.network.town import agents_ready, ask, program
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

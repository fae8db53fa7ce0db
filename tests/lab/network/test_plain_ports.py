"""Servers' ports that the lab file keeps with TCP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import Cluster
from lab.render import Rendered
from tests.lab.command import LabCommand
from tests.lab.conftest import Evidence, toolbox
from tests.lab.pods import SERVER_PORT, Pods
from tests.lab.talker import Talker

SPACE, CLIENT, SERVER = "plain-ports", "client", "server"


@pytest.fixture
def talkers(lab: Rendered, cluster: Cluster) -> Iterator[Pods]:
    """A client and a server on the first node."""
    pods = Pods(cluster, SPACE, toolbox())
    pods.create()
    for name in (CLIENT, SERVER):
        pods.run(name, lab.nodes[0].name)
    try:
        pods.ready()
        yield pods
    finally:
        pods.remove()


def test_a_port_of_the_lab_file_stays_with_tcp_from_the_next_up_on(
    lab: Rendered, command: LabCommand, talkers: Pods, tmp_path: Path, evidence: Evidence
) -> None:
    """`redirect.plain_ports`: new connections to the port are plain and say why, open ones go on as before"""
    ends = (f"{SPACE}/{CLIENT}", f"{SPACE}/{SERVER}", "--port", str(SERVER_PORT))
    text = (lab.folder / "lab.yaml").read_text()
    was, changed = LabCommand(tmp_path / "was.yaml"), LabCommand(tmp_path / "changed.yaml")
    was.file.write_text(text)
    changed.file.write_text(f"{text}redirect:\n  plain_ports: [{SERVER_PORT}]\n")
    address = talkers.address(SERVER)

    def reasons() -> dict[int, str]:
        found = command.json("explain", *ends)["connections"]
        return {int(one["client"].rpartition(":")[2]): one["reason"] for one in found}

    with Talker(talkers, CLIENT, address) as before:
        before.talk(1)
        assert reasons() == {before.port: ""}
        try:
            assert changed.json("up")["changed"] >= 1
            with Talker(talkers, CLIENT, address) as after:
                after.talk(1)
                before.talk(1)
                evidence(f"open: {reasons()[before.port] or 'accelerated'}, new: {reasons()[after.port]}")
                assert reasons() == {before.port: "", after.port: "opted-out"}
                assert command.json("explain", *ends)["next"]["reason"] == "opted-out"
        finally:
            was.check("up", "--progress=plain")
    with Talker(talkers, CLIENT, address) as again:
        again.talk(1)
        assert reasons()[again.port] == ""

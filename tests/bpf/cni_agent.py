"""The agent's end of the CNI plugin in a process of its own, that tests may kill at any moment.

Run as `python -m tests.bpf.cni_agent FOLDER` inside a network namespace that stands for the node's. All
is real (sockets, address book, cables, namespaces) but the pinned maps and the API server, which the BPF
tests and the lab tests have.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from pyroute2 import IPRoute

from agent.cni.operations import CniOperations
from agent.cni.server import CniServer
from agent.effects import Settings
from agent.engine import Engine
from agent.identity.allocator import IdentityAllocator
from agent.ipam import Ipam
from agent.links import Links
from agent.model.objects import Name, Namespace, Node, Pod
from agent.planes.base import Change, Kind, Synced
from tests.fake_kernel import FakeKernel
from tests.unit.test_agent_identity import Server

NODE_ADDRESS = "172.30.0.2"
PODS = 300


class Programs:
    """Stands for the attaching of programs: the link must still be down."""

    def attach(self, host_interface: str) -> None:
        with IPRoute() as host:
            link = host.get_links(host.link_lookup(ifname=host_interface)[0])[0]
            if link.get_attr("IFLA_OPERSTATE") == "UP" or link["flags"] & 1:
                raise OSError(1, f"{host_interface} is up before its programs are there")


def main(folder: Path) -> None:
    """Serve until the process is killed."""
    with IPRoute() as host:
        host.link("set", index=1, state="up")
        host.addr("replace", index=1, address=NODE_ADDRESS, prefixlen=32)
    ipam = Ipam(folder / "addresses.json")
    allocator = IdentityAllocator(Server())

    def log(level: str, event: str, **fields: object) -> None:
        if level in ("warning", "error"):
            sys.stderr.write(f"{level}: {event} {fields}\n")

    engine = Engine(Settings("node-1", "10.244.0.0/16", "10.96.0.0/16"), FakeKernel(), ipam, allocator, log)
    engine.start(frozenset(Kind), [])
    pods = [
        Pod(Name("blue", f"p{n}"), f"u{n}", "node-1", {"app": str(n % 5)}, "default") for n in range(PODS)
    ]
    engine.submit(
        [
            Change(Kind.NODE, "node-1", Node("node-1", "n1", (NODE_ADDRESS,), ("10.244.0.0/23",))),
            Change(Kind.NAMESPACE, "blue", Namespace("blue", {})),
            *(Change(Kind.POD, str(pod.name), pod) for pod in pods),
            *(Synced(kind) for kind in Kind),
        ]
    )
    operations = CniOperations(
        engine, ipam, Links(lambda: 1450), Programs(), allocator, lambda: NODE_ADDRESS, log
    )
    CniServer(folder / "cni.sock", operations, log, lambda *_: None).start()
    (folder / f"ready.{os.getpid()}").touch()
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

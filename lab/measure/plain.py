"""What the datapath is held against: the same cables and namespaces with a Linux bridge and VXLAN, no BPF.

    <id>.plain-a ─┐                                             ┌─ <id>.plain-c
                  ├─ bridge ─ vxlan ═ cable ═ lab's switch ═ ... ┘
    <id>.plain-b ─┘  (<id>.plain-1)                   (<id>.plain-2)

The namespaces are made on the host, beside the nodes' own, so that neither the nodes' programs nor the host's
firewall see their packets. They run the programs of a pod's image in the pod's share of the CPU.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import ExitCode, die
from lab.measure.shell import Shell
from lab.render import Rendered, RenderedNode
from lab.run import run

ADDRESSES = {"a": "10.0.0.1", "b": "10.0.0.2", "c": "10.0.0.3"}
_CGROUPS = Path("/sys/fs/cgroup")
_VNI, _PORT = 7, 4789


@dataclass
class Plain:
    """The namespaces of one lab, and the servers started in them."""

    lab: Rendered
    node: RenderedNode
    pod_uid: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def name(self, part: str) -> str:
        return f"{self.lab.switch}.plain-{part}"

    def argv(self, part: str, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in namespace `part`, with the pod's files and CPU share."""
        process, group = _of_pod(self.lab, self.node, self.pod_uid)
        enter = ["nsenter", f"--mount=/proc/{process}/ns/mnt", f"--net=/run/netns/{self.name(part)}", "--"]
        joined = (
            f"echo $$ > {shlex.quote(str(group / 'cgroup.procs'))} && exec {shlex.join([*enter, *command])}"
        )
        return ["bash", "-c", joined]

    def serve(self, part: str, command: Sequence[str]) -> None:
        """Start a server; it ends with the rest."""
        self.started.append(
            subprocess.Popen(
                self.argv(part, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
            )
        )  # fmt: skip

    def pin(self, cpu: int) -> None:
        """Put the servers on one CPU."""
        for process in self.started:
            for folder in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setaffinity(int(folder.name), {cpu})
            for child in _children(process.pid):
                os.sched_setaffinity(child, {cpu})

    def shell(self, part: str) -> Shell:
        return Shell(self.argv(part, ["bash"]))

    def create(self, mtu: int) -> None:
        """Make it all; what an interrupted run left is removed first."""
        self.remove()
        nodes = ipaddress.IPv4Network(self.lab.nodes_range)
        ends = {"1": nodes[-2], "2": nodes[-3]}
        for part in ("1", "2", *ADDRESSES):
            run(["ip", "netns", "add", self.name(part)])
        for part, other in (("1", "2"), ("2", "1")):
            here, cable = self.name(part), f"up{self.lab.tag}p{part}"
            _ip(self.lab.switch, f"link add {cable} type veth peer name eth0 netns {here}")
            _ip(self.lab.switch, f"link set {cable} master {self.lab.bridge} up")
            _ip(here, f"address add {ends[part]}/{nodes.prefixlen} dev eth0")
            _ip(here, "link set eth0 up")
            _ip(here, "link add bridge type bridge")
            _ip(here, "link set bridge up")
            tunnel = f"id {_VNI} remote {ends[other]} local {ends[part]} dstport {_PORT} dev eth0"
            _ip(here, f"link add vxlan type vxlan {tunnel}")
            _ip(here, f"link set vxlan mtu {mtu} master bridge up")
        for part, address in ADDRESSES.items():
            host = self.name("2" if part == "c" else "1")
            peer = f"peer name eth0 mtu {mtu} netns {self.name(part)}"
            _ip(host, f"link add pod-{part} mtu {mtu} type veth {peer}")
            _ip(host, f"link set pod-{part} master bridge up")
            _ip(self.name(part), f"address add {address}/24 dev eth0")
            _ip(self.name(part), "link set eth0 up")
            _ip(self.name(part), "link set lo up")

    def remove(self) -> None:
        """End the servers that we started, and take the namespaces away with their links."""
        for process in self.started:
            process.terminate()
        for process in self.started:
            process.wait(timeout=10)
        self.started.clear()
        for part in ("1", "2", *ADDRESSES):
            if Path("/run/netns", self.name(part)).exists():
                run(["ip", "netns", "delete", self.name(part)])


@contextmanager
def plain(lab: Rendered, node: RenderedNode, pod_uid: str, mtu: int) -> Iterator[Plain]:
    """The baseline, made and removed."""
    if lab.provider != "nspawn":
        die(
            f"nodes of provider {lab.provider} cannot be held against a plain bridge on this host",
            hint="measure a lab of system containers (provider nspawn)",
            code=ExitCode.USAGE,
        )
    made = Plain(lab, node, pod_uid)
    try:
        made.create(mtu)
        yield made
    finally:
        made.remove()


def _children(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [int(word) for word in words]


def _ip(namespace: str, words: str) -> None:
    run(["ip", "-n", namespace, *words.split()], code=ExitCode.NODE)


def _of_pod(lab: Rendered, node: RenderedNode, uid: str) -> tuple[int, Path]:
    """A process of the pod and the cgroup that gives it its share, as the host sees them."""
    roots = [_CGROUPS / "cpu", _CGROUPS]
    root = next(path for path in roots if (path / node.cgroup).is_dir())
    for folder in sorted((root / node.cgroup).rglob(f"*pod{uid}*")):
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            for word in (inner / "cgroup.procs").read_text(encoding="utf-8").split():
                name = Path(f"/proc/{word}/comm").read_text(encoding="utf-8").strip()
                if name != "pause":
                    return int(word), inner
    return die(f"no process of pod {uid} is seen on {node.name} of lab {lab.id}", code=ExitCode.NODE)

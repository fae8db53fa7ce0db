"""What a lab file means in names and addresses. Everything else reads this; nothing is derived twice.

`render` is pure: the same lab file gives the same names. `write` puts them into the lab's folder,
where Ansible, ssh and the tests find them.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from lab import paths
from lab.emulation import patience
from lab.files import write_atomic
from lab.labfile import LabFile, load

SSH_USER = "root"
API_PORT = 6443


@dataclass(frozen=True)
class RenderedNode:
    """One node: its names and addresses. `memory` in MiB and `cpus` are limits, None for none."""

    name: str
    roles: tuple[str, ...]
    address: str
    mac: str
    machine: str  # unique on the host: the nspawn machine, the namespace, the VM
    host_link: str  # the switch's end of the node's cable
    cgroup: str  # below the host's cgroup root
    cpus: float | None
    memory: int | None
    kernel: str | None = None  # its series, of a machine of its own; None for any that serves


@dataclass(frozen=True)
class Rendered:
    """A lab in full. `prefix_length` is that of the nodes' range; `gateway` is the host's address in it."""

    id: str
    provider: str
    tag: str  # 8 hex digits of the id, for names that must be short
    home: str
    nodes: tuple[RenderedNode, ...]
    nodes_range: str
    prefix_length: int
    gateway: str
    switch: str  # the namespace that holds the lab's bridge
    bridge: str  # the bridge, in that namespace
    uplink: str  # the host's link into the switch
    cgroup: str
    pods_range: str
    services_range: str
    api_service: str  # first address of the Services' range
    dns_service: str  # tenth
    dns_domain: str
    api_url: str
    kubernetes_version: str
    context: str
    istio_version: str | None = None  # None where the lab has no Istio
    istio_samples: bool = False
    redirect: bool = True
    plain_ports: tuple[int, ...] = ()
    box: str | None = None  # what Vagrant calls the box of the machines; None for the lab's own
    hypervisor: str = "libvirt"  # what runs the machines, where nodes are machines

    @property
    def control_plane(self) -> RenderedNode:
        return next(node for node in self.nodes if "control-plane" in node.roles)

    def node(self, name: str) -> RenderedNode:
        """The node called `name`; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def folder(self) -> Path:
        return Path(self.home)


def render(lab: LabFile) -> Rendered:
    """The names and addresses of `lab`."""
    digest = hashlib.sha256(lab.id.encode()).digest()
    tag = digest.hex()[:8]
    home = paths.lab_home(lab.id)
    nodes_range = ipaddress.IPv4Network(lab.network.nodes or f"10.{128 + digest[0] % 64}.{digest[1]}.0/24")
    services = ipaddress.IPv4Network(lab.network.services)
    cgroup = f"underpass-{lab.id}"
    nodes = tuple(
        RenderedNode(
            name=node.name,
            roles=node.roles,
            address=str(nodes_range[2 + index]),
            mac="02:" + ":".join(f"{byte:02x}" for byte in (*digest[:4], index + 1)),
            machine=f"underpass-{lab.id}.{node.name}",
            host_link=f"up{tag}n{index + 1}",
            cgroup=f"{cgroup}/{node.name}",
            cpus=node.cpus,
            memory=node.memory,
            kernel=node.kernel,
        )
        for index, node in enumerate(lab.nodes)
    )
    plane = next(node for node in nodes if "control-plane" in node.roles)
    return Rendered(
        id=lab.id,
        provider=lab.provider,
        tag=tag,
        home=str(home),
        nodes=nodes,
        nodes_range=str(nodes_range),
        prefix_length=nodes_range.prefixlen,
        gateway=str(nodes_range[1]),
        switch=f"underpass-{lab.id}",
        bridge=f"up{tag}br",
        uplink=f"up{tag}",
        cgroup=cgroup,
        pods_range=lab.network.pods,
        services_range=lab.network.services,
        api_service=str(services[1]),
        dns_service=str(services[10]),
        dns_domain=lab.network.dns_domain,
        api_url=f"https://{plane.address}:{API_PORT}",
        kubernetes_version=lab.kubernetes.version,
        context=f"lab-{lab.id}",
        istio_version=lab.istio.version if lab.istio.enabled else None,
        istio_samples=lab.istio.enabled and lab.istio.samples,
        redirect=lab.redirect.enabled,
        plain_ports=tuple(sorted(set(lab.redirect.plain_ports))),
        box=lab.machines.box,
        hypervisor=lab.machines.hypervisor,
    )


def inventory(lab: Rendered, artifacts: dict[str, str]) -> dict[str, Any]:
    """The Ansible inventory: hosts, groups and variables.

    `artifacts` maps an artifact's name to its path on the nodes.
    """
    hosts = {
        node.name: {
            "ansible_host": node.address,
            "underpass_node": {
                "name": node.name,
                "address": node.address,
                "roles": list(node.roles),
                "cpus": node.cpus,
                "memory_mib": node.memory,
                "kernel": node.kernel,
            },
        }
        for node in lab.nodes
    }
    folder = lab.folder
    ssh = f"-F {folder / 'ssh_config'}"
    return {
        "all": {
            "vars": {
                "ansible_user": SSH_USER,
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_common_args": ssh,
                "underpass_lab": {
                    "id": lab.id,
                    "provider": lab.provider,
                    "box": lab.box or "",
                    "nodes_range": lab.nodes_range,
                    "gateway": lab.gateway,
                    "pods_range": lab.pods_range,
                    "services_range": lab.services_range,
                    "api_service": lab.api_service,
                    "dns_service": lab.dns_service,
                    "dns_domain": lab.dns_domain,
                    "api_address": lab.control_plane.address,
                    "api_port": API_PORT,
                    "api_url": lab.api_url,
                    "kubernetes_version": lab.kubernetes_version,
                    "istio": lab.istio_version is not None,
                    "istio_version": lab.istio_version or "",
                    "redirect": lab.redirect,
                    "plain_ports": list(lab.plain_ports),
                    "image_artifacts": _image_artifacts(lab),
                    "keys_folder": str(folder / "keys"),
                },
                "underpass_artifacts": dict(artifacts),
            },
            "children": {
                "nodes": {"hosts": hosts},
                "control_plane": {"hosts": {lab.control_plane.name: {}}},
                "workers": {
                    "hosts": {node.name: {} for node in lab.nodes if "worker" in node.roles},
                },
            },
        }
    }


def _image_artifacts(lab: Rendered) -> list[str]:
    """The artifacts whose images the lab's nodes have."""
    return [
        "images",
        *(["istio-images"] if lab.istio_version else []),
        *(["sample-images"] if lab.istio_samples else []),
    ]


def ssh_config(lab: Rendered) -> str:
    """An ssh_config for the lab's nodes: the lab's own key, the lab's own known hosts, nothing else."""
    folder = lab.folder
    blocks = [
        f"Host {node.name} {node.address}\n  HostName {node.address}\n  HostKeyAlias {node.name}\n"
        for node in lab.nodes
    ]
    common = (
        "Host *\n"
        f"  User {SSH_USER}\n"
        f"  IdentityFile {folder / 'keys' / 'ssh'}\n"
        "  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'keys' / 'known_hosts'}\n"
        "  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n"
        f"  ConnectTimeout {5 * patience(lab.provider):.0f}\n"
        f"  ServerAliveInterval {5 * patience(lab.provider):.0f}\n"
        "  LogLevel ERROR\n"
        "  ControlMaster auto\n"
        f"  ControlPath /run/underpass/{lab.tag}-%C\n"
        "  ControlPersist 60\n"
    )
    return "".join(blocks) + common


def to_json(lab: Rendered) -> dict[str, Any]:
    """The whole of it as plain JSON data."""
    return asdict(lab)


def from_json(data: dict[str, Any]) -> Rendered:
    """The inverse of `to_json`. What another release may have written beside is passed over."""
    nodes = tuple(
        RenderedNode(**{**_known(RenderedNode, node), "roles": tuple(node["roles"])})
        for node in data["nodes"]
    )
    ports = tuple(data.get("plain_ports", ()))
    return Rendered(**{**_known(Rendered, data), "nodes": nodes, "plain_ports": ports})


def _known(kind: type[Rendered | RenderedNode], data: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in data.items() if name in names}


def write(lab: Rendered, source: str, artifacts: dict[str, str]) -> int:
    """Write the rendered files into the lab's folder; returns how many of them changed.

    `source` is the text of the lab file, kept beside, so that a lab can be taken down when its own
    file is gone. `artifacts` as in `inventory`.
    """
    folder = lab.folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {
        "lab.yaml": source,
        "lab.json": json.dumps(to_json(lab), indent=2) + "\n",
        "inventory.yaml": yaml.safe_dump(inventory(lab, artifacts), sort_keys=False),
        "ssh_config": ssh_config(lab),
    }
    return sum(write_atomic(folder / name, text) for name, text in files.items())


def read(lab_id: str) -> Rendered | None:
    """The lab as it was last rendered, or None if it never was.

    What an older release did not write yet comes from the lab file that was kept beside.
    """
    file = paths.lab_home(lab_id) / "lab.json"
    try:
        return from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError):
        return render_file(file.with_name("lab.yaml"))


def render_file(path: Path) -> Rendered:
    """Load, check and render the lab file at `path`."""
    return render(load(path))

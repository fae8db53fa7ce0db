"""The lab file: what a lab is, checked with every fault listed at once.

Source of the format: the models below; ``lab schema`` prints the JSON Schema made from them.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lab.errors import ExitCode, LabError
from lab.lock import lock

API_VERSION = "underpass.dev/v1"
NAME = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"

BOX = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"

_SIZE = re.compile(r"^(\d+)(MiB|GiB)$")


def _size_to_mib(value: object) -> object:
    """A size as people write it (`512MiB`, `2GiB`) as whole MiB."""
    if not isinstance(value, str) or not (match := _SIZE.match(value)):
        raise ValueError("a size is a whole number with MiB or GiB, for example 2GiB")
    return int(match[1]) * (1024 if match[2] == "GiB" else 1)


def _network(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as fault:
        raise ValueError(f"not an IPv4 network such as 10.244.0.0/16: {fault}") from None
    return str(network)


def _locked(part: str) -> AfterValidator:
    def check(version: str) -> str:
        if version != (locked := lock().versions[part]):
            raise ValueError(f"version {version} is not in the lock file; this release carries {locked}")
        return version

    return AfterValidator(check)


def _box(value: str) -> str:
    if not re.match(BOX, value):
        raise ValueError(f"{value!r} is not a name by which Vagrant knows a box, such as debian/trixie64")
    return value


Mebibytes = Annotated[
    int,
    BeforeValidator(_size_to_mib),
    WithJsonSchema({"type": "string", "pattern": _SIZE.pattern}),
]
Network = Annotated[str, AfterValidator(_network)]
Box = Annotated[str, AfterValidator(_box), WithJsonSchema({"type": "string", "pattern": BOX})]
Role = Literal["control-plane", "worker"]
ProviderName = Literal["nspawn", "vagrant"]
HypervisorName = Literal["libvirt", "virtualbox"]
#: Series of the kernels among the artifacts (`lab.builds.kernels`).
Kernel = Literal["6.12"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(_Part):
    """One machine of the lab."""

    name: str = Field(pattern=NAME, max_length=30, description="Host name of the node.")
    roles: tuple[Role, ...] = Field(min_length=1, description="What the node does in the cluster.")
    cpus: float | None = Field(
        None,
        gt=0,
        le=256,
        description="CPUs at most; if absent, a container has all of the host's, a machine two at most.",
    )
    memory: Mebibytes | None = Field(
        None,
        ge=512,
        description="Memory at most, as 2GiB; if absent, a container has no limit, a machine 3GiB with the "
        "control plane and 2GiB without.",
    )
    kernel: Kernel | None = Field(
        None, description="Series of the kernel, of a machine of its own; any that serves if absent."
    )


class Machines(_Part):
    """What runs the machines of `provider: vagrant`, and what they are made from."""

    hypervisor: HypervisorName = Field("libvirt", description="What runs the machines.")

    box: Box | None = Field(
        None, description="Name of a Debian 13 box that Vagrant knows or gets; the lab's own box if absent."
    )


class Kubernetes(_Part):
    """The Kubernetes of the lab."""

    version: Annotated[str, _locked("kubernetes")] = Field(
        default_factory=lambda: lock().versions["kubernetes"], description="Version, with its v."
    )


class Istio(_Part):
    """Istio, on top of the lab's network."""

    enabled: bool = Field(False, description="Install Istio; namespaces that ask for it get sidecars.")
    version: Annotated[str, _locked("istio")] = Field(
        default_factory=lambda: lock().versions["istio"], description="Version, as this release carries it."
    )
    samples: bool = Field(True, description="Have the images of Istio's sample applications on every node.")


class Redirect(_Part):
    """Socket redirect: connections between pods of one node, below TCP/IP."""

    enabled: bool = Field(True, description="Accelerate connections between pods of one node.")
    plain_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        (), max_length=256, description="Servers' ports whose connections stay with TCP."
    )


class Ranges(_Part):
    """The address ranges of the lab. All IPv4, none overlapping another or the host's."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Networks")

    nodes: Network | None = Field(
        None, description="Range of the nodes, /24 to /28; derived from the lab's id if absent."
    )
    pods: Network = Field("10.244.0.0/16", description="Range of the pods; each node takes a /24 of it.")
    services: Network = Field("10.96.0.0/16", description="Range of the Services' cluster addresses.")
    dns_domain: str = Field("cluster.local", pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")


def _default_nodes() -> tuple[Node, ...]:
    return (
        Node(name="node-1", roles=("control-plane", "worker")),
        Node(name="node-2", roles=("worker",)),
    )


class LabFile(_Part):
    """A lab: some nodes, made by a provider, that become one Kubernetes cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Underpass lab")

    apiVersion: Literal["underpass.dev/v1"]
    kind: Literal["Lab"]
    id: str = Field(
        pattern=NAME,
        max_length=20,
        description="Names the lab; each name, address and file of the lab derives from it.",
    )
    provider: ProviderName = Field("nspawn", description="What makes the nodes.")
    nodes: tuple[Node, ...] = Field(default_factory=_default_nodes, min_length=1, max_length=10)
    machines: Machines = Field(default_factory=Machines)
    kubernetes: Kubernetes = Field(default_factory=Kubernetes)
    redirect: Redirect = Field(default_factory=Redirect)
    istio: Istio = Field(default_factory=Istio)
    network: Ranges = Field(default_factory=Ranges)

    @model_validator(mode="after")
    def _whole(self) -> LabFile:
        faults = list(_cross_faults(self))
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _cross_faults(lab: LabFile) -> Iterator[str]:
    """Faults that no single field shows."""
    names = [node.name for node in lab.nodes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"nodes: two nodes are called {name}; each needs a name of its own"
    planes = sum("control-plane" in node.roles for node in lab.nodes)
    if planes != 1:
        yield f"nodes: {planes} nodes have the role control-plane; a lab has exactly one"
    if lab.provider == "nspawn":
        for index, node in enumerate(lab.nodes):
            if node.kernel:
                yield f"nodes[{index}].kernel: containers share the host's; `provider: vagrant` has a choice"
        if lab.machines.box:
            yield "machines.box: containers are made from no box; `provider: vagrant` makes machines"
        if lab.machines.hypervisor != "libvirt":
            yield "machines.hypervisor: containers run on the host; `provider: vagrant` makes machines"
    ranges = {
        field: ipaddress.IPv4Network(value)
        for field in ("nodes", "pods", "services")
        if (value := getattr(lab.network, field)) is not None
    }
    for first, second in (("nodes", "pods"), ("nodes", "services"), ("pods", "services")):
        if first in ranges and second in ranges and ranges[first].overlaps(ranges[second]):
            yield (
                f"network.{second}: {ranges[second]} overlaps network.{first} {ranges[first]}; "
                "choose ranges that do not share addresses"
            )
    if "nodes" in ranges and not 24 <= ranges["nodes"].prefixlen <= 28:
        yield "network.nodes: the range of the nodes is /24 to /28"
    if ranges["pods"].prefixlen > 20:
        yield "network.pods: too small; /20 or wider gives each node a /24"
    if not 12 <= ranges["services"].prefixlen <= 24:
        yield "network.services: Kubernetes takes /12 to /24 here"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a lab file: where (line from 1, 0 if unknown; field path) and what."""

    line: int
    field: str
    message: str

    def text(self, file: str) -> str:
        where = f"{file}:{self.line}" if self.line else file
        return f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"


def load(path: Path) -> LabFile:
    """Read and check a lab file. Raises `LabError` (exit status 3) with every fault listed."""
    hint = "lab.yaml in the project's root is an example; `lab schema` prints the format"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not UTF-8 text"
        raise LabError(
            f"cannot read the lab file {path}: {reason}", hint=hint, code=ExitCode.LAB_FILE
        ) from None
    lab, faults = parse(text)
    if lab is None:
        noun = "fault" if len(faults) == 1 else "faults"
        raise LabError(
            f"{path} has {len(faults)} {noun}",
            details=[fault.text(path.name) for fault in faults],
            hint=hint,
            code=ExitCode.LAB_FILE,
        )
    return lab


def parse(text: str) -> tuple[LabFile | None, list[Fault]]:
    """The lab that `text` describes, or None and every fault found, in the order of the lines."""
    try:
        document: Any = YAML(typ="rt").load(StringIO(text))
    except MarkedYAMLError as broken:
        mark = broken.problem_mark or broken.context_mark
        line = mark.line + 1 if mark else 0
        return None, [Fault(line, "", f"not YAML: {broken.problem or broken.context}")]
    except (YAMLError, ValueError) as broken:
        return None, [Fault(0, "", f"not YAML: {broken}")]
    if not isinstance(document, Mapping):
        return None, [Fault(1, "", "a lab file is a mapping that begins with apiVersion and kind: Lab")]
    try:
        return LabFile.model_validate(_plain(document)), []
    except ValidationError as invalid:
        errors: list[dict[str, Any]] = [dict(error) for error in invalid.errors()]
        places = [error["loc"] for error in errors]
        # a list whose items are wrong is also called too short: say it once
        errors = [
            error
            for error in errors
            if error["type"] != "too_short"
            or not any(place[: len(error["loc"])] == error["loc"] != place for place in places)
        ]
        faults = [fault for error in errors for fault in _faults(document, error)]
        return None, sorted(faults, key=lambda fault: (fault.line, fault.field))


def _plain(value: Any) -> Any:
    """A ruamel tree as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _faults(document: Any, error: dict[str, Any]) -> Iterator[Fault]:
    location: tuple[str | int, ...] = error["loc"]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not location:  # the cross checks: one fault a line, "field: message"
        for line in message.splitlines():
            path, _, what = line.partition(": ")
            yield Fault(_line(document, tuple(path.split("."))), path, what)
        return
    if error["type"] == "extra_forbidden":
        message = "unknown field" + _suggestion(location)
    elif error["type"] == "missing":
        message = "missing"
    elif error["type"] == "string_pattern_mismatch":
        message = f"{error['input']!r} does not fit: lower-case letters, digits and hyphens, a letter first"
    yield Fault(_line(document, location), _dotted(location), message)


def _dotted(location: tuple[str | int, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


_PARTS: dict[str, Any] = {
    "nodes": Node,
    "machines": Machines,
    "kubernetes": Kubernetes,
    "redirect": Redirect,
    "istio": Istio,
    "network": Ranges,
}


def _suggestion(location: tuple[str | int, ...]) -> str:
    """` (did you mean ...?)` for a field name with a near neighbour at the same place."""
    model: Any = LabFile
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        model = _PARTS.get(part, model)
    near = difflib.get_close_matches(str(location[-1]), list(model.model_fields), n=1)
    known = ", ".join(model.model_fields)
    return f"; did you mean {near[0]}?" if near else f"; known here: {known}"


def _line(document: Any, location: tuple[str | int, ...]) -> int:
    """The line (from 1) of the field at `location`, or of its nearest parent that is there."""
    line = 1
    here = document
    for part in location:
        try:
            if isinstance(part, int):
                line = here.lc.item(part)[0] + 1
            else:
                line = here.lc.key(part)[0] + 1
            here = here[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line

"""The answers to the node command: plain data from the engine, made on the engine's thread."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from typing import Any

from agent.endpoints import LocalEndpoint
from agent.engine import Engine
from agent.identity.reserved import Reserved
from agent.ipam import Ipam
from agent.model.objects import Labels, Protocol
from agent.outbox import Outbox
from agent.planes.kubernetes.plane import KubernetesPlane
from agent.policy.compile import NamedPorts, compile_endpoint
from agent.policy.rules import Direction, Policy
from agent.policy.trace import judge
from agent.redirect.explain import End
from agent.redirect.view import RedirectView

Answer = dict[str, Any]


class AnswerError(Exception):
    """The question cannot be answered; the text says why."""


class Answers:
    """One method for each question. Methods run on the caller's thread and ask the engine."""

    def __init__(
        self,
        engine: Engine,
        ipam: Ipam,
        plane: KubernetesPlane,
        outbox: Outbox,
        maps: Callable[[], list[Answer]],
        redirect: RedirectView,
        version: str,
    ) -> None:
        self._engine = engine
        self._ipam = ipam
        self._plane = plane
        self._outbox = outbox
        self._maps = maps
        self._redirect = redirect
        self._version = version
        self._began = time.time()

    def answer(self, command: str, arguments: Mapping[str, Any]) -> Any:
        """The answer to `command`. Raises AnswerError."""
        questions: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "status": lambda _: {**self._engine.ask(self._status), "redirect": self._redirect.summary()},
            "endpoints": lambda _: self._engine.ask(self._endpoints),
            "identities": lambda _: self._engine.ask(self._identities),
            "services": lambda _: self._engine.ask(self._services),
            "policy-get": lambda a: self._engine.ask(lambda: self._policies(str(a.get("name") or ""))),
            "policy-trace": lambda a: self._engine.ask(lambda: self._trace(a)),
            "explain": self._explain,
            "maps": lambda _: self._maps(),
        }
        question = questions.get(command)
        if question is None:
            raise AnswerError(f"unknown command {command!r}")
        return question(arguments)

    def _status(self) -> Answer:
        engine = self._engine
        held = self._ipam.all()
        nodes = [
            {"name": node.name, "addresses": list(node.addresses), "pods": list(node.pod_ranges)}
            for node in sorted(engine.cluster.nodes.values(), key=lambda node: node.name)
        ]
        faults = {str(kind): state.fault for kind, state in self._plane.watches.items() if state.fault}
        bad = [
            {"policy": f"{key[0]} {key[1]}", "faults": [str(f) for f in parsed.faults]}
            for key, parsed in sorted(engine.parsed.items())
            if parsed.faults
        ]
        return {
            "version": self._version,
            "node": engine.settings.node,
            "ready": engine.ready and not engine.state.faults,
            "uptime_seconds": round(time.time() - self._began),
            "kubernetes": {"reachable": self._plane.reachable, "faults": faults},
            "addresses": {
                "ranges": [str(network) for network in self._ipam.ranges],
                "held": len(held),
                "capacity": self._ipam.capacity,
            },
            "tables": engine.state.sizes(),
            "table_faults": dict(engine.table_faults),
            "waiting_writes": self._outbox.waiting,
            "nodes": nodes,
            "policies_not_valid": bad,
            "forged_labels": dict(engine.forging),
        }

    def _endpoints(self) -> list[Answer]:
        return [
            self._endpoint(endpoint)
            for endpoint in sorted(self._engine.local.values(), key=lambda e: str(e.pod))
        ]

    def _endpoint(self, endpoint: LocalEndpoint) -> Answer:
        selecting = self._selecting(endpoint.labels)
        isolated = {direction for policy in selecting for direction in policy.isolates}
        return {
            "id": endpoint.id,
            "pod": str(endpoint.pod),
            "address": endpoint.attachment.address,
            "identity": endpoint.identity,
            "interface": endpoint.cable.host_interface,
            "ifindex": endpoint.cable.ifindex,
            "mac": endpoint.cable.mac,
            "ingress": "enforced" if Direction.INGRESS in isolated else "open",
            "egress": "enforced" if Direction.EGRESS in isolated else "open",
            "policies": sorted(policy.id for policy in selecting),
            "labels": dict(endpoint.labels or {}),
            "container": endpoint.attachment.container,
        }

    def _selecting(self, labels: Labels | None) -> list[Policy]:
        return self._engine.policies.selecting(labels) if labels is not None else []

    def _identities(self) -> list[Answer]:
        return [
            {"id": identity.number, "labels": dict(identity.labels)}
            for identity in self._engine.policies.identities()
        ]

    def _services(self) -> list[Answer]:
        found = []
        for key, frontend in self._engine.state.services.wanted.all().items():
            found.append(
                {
                    "owner": frontend.owner,
                    "address": "*" if key.address == ipaddress.IPv6Address(0) else str(key.address),
                    "port": key.port,
                    "protocol": _protocol_name(key.protocol),
                    "scope": "cluster" if key.scope == 0 else "external",
                    "affinity_seconds": frontend.affinity_seconds if frontend.affinity else 0,
                    "backends": [f"{backend.address}:{backend.port}" for backend in frontend.backends],
                }
            )
        return sorted(found, key=lambda s: (s["owner"], s["address"], s["port"], s["scope"]))

    def _policies(self, wanted: str) -> list[Answer]:
        found = []
        for key, parsed in sorted(self._engine.parsed.items()):
            if wanted and wanted not in (key[1], key[1].rpartition("/")[2], f"{key[0]}:{key[1]}"):
                continue
            found.append(
                {
                    "kind": key[0],
                    "name": key[1],
                    "valid": parsed.valid,
                    "faults": [str(fault) for fault in parsed.faults],
                    "rules": [
                        {"policy": policy.id, "path": rule.path, "verdict": "deny" if rule.deny else "allow"}
                        for policy in parsed.policies
                        for rule in policy.rules
                    ],
                    "endpoints": sorted(
                        str(endpoint.pod)
                        for endpoint in self._engine.local.values()
                        if endpoint.labels is not None
                        and any(p.subjects.matches(endpoint.labels) for p in parsed.policies)
                    ),
                }
            )
        return found

    def _trace(self, arguments: Mapping[str, Any]) -> Answer:
        protocol = Protocol(str(arguments.get("protocol") or "TCP"))
        port = int(arguments.get("port") or 0)
        source, source_labels, source_ports = self._who(str(arguments.get("source")))
        target, target_labels, target_ports = self._who(str(arguments.get("target")))
        names = self._engine.policies.rule_names()
        sides = []
        here = {name for e in self._engine.local.values() for name in (str(e.pod), e.attachment.address)}
        for direction, whose, labels, ports, peer in (
            (Direction.EGRESS, arguments.get("source"), source_labels, source_ports, target),
            (Direction.INGRESS, arguments.get("target"), target_labels, target_ports, source),
        ):
            if labels is None:
                continue
            grants = compile_endpoint(self._engine.policies.selecting(labels), ports, self._engine.policies)
            judgement = judge(grants, direction, peer, protocol.number, port)
            sides.append(
                {
                    "direction": str(direction),
                    "verdict": "allow" if judgement.allowed else "deny",
                    "rule": names.get(judgement.rule, "no rule allows it"),
                    "here": whose in here,
                }
            )
        return {
            "source_identity": source,
            "target_identity": target,
            "protocol": str(protocol),
            "port": port,
            "verdict": "allow" if all(side["verdict"] == "allow" for side in sides) else "deny",
            "sides": sides,
        }

    def _explain(self, arguments: Mapping[str, Any]) -> Answer:
        """Connections from `source` to `target`, each an empty text for any, at `port`, 0 for any."""

        def ends() -> tuple[End | None, End | None, dict[int, str]]:
            source = self._end(str(arguments.get("source") or ""))
            target = self._end(str(arguments.get("target") or ""))
            if source and not source.endpoint:
                raise AnswerError(f"{source.name} is no pod of this node: ask the node that it runs on")
            return source, target, {e.id: str(e.pod) for e in self._engine.local.values()}

        source, target, names = self._engine.ask(ends)
        return self._redirect.explain(source, target, int(arguments.get("port") or 0), names)

    def _end(self, text: str) -> End | None:
        """A pod of the cluster (namespace/name) or an address; None for an empty text."""
        if not text:
            return None
        for local in self._engine.local.values():
            if text in (str(local.pod), local.attachment.address):
                return End(str(local.pod), local.attachment.address, local.id, local.flags)
        for endpoint in self._engine.cluster.endpoints.values():
            if text == str(endpoint.name) or text in endpoint.addresses:
                return End(str(endpoint.name), next(iter(endpoint.addresses), ""))
        if _address(text) is None:
            raise AnswerError(f"{text!r} is no pod (namespace/name) that this node knows, and no address")
        return End(text, text)

    def _who(self, text: str) -> tuple[int, Labels | None, NamedPorts]:
        """(identity, labels if it is a pod's, named ports) of a pod, an address, a number or an entity."""
        engine = self._engine
        for local in engine.local.values():
            if text in (str(local.pod), local.attachment.address):
                return local.identity, local.labels, local.ports
        for endpoint in engine.cluster.endpoints.values():
            if text == str(endpoint.name) or text in endpoint.addresses:
                identity = engine.policies.identity(endpoint.identity)
                return endpoint.identity, identity.labels if identity else None, endpoint.named_ports
        if text.isdecimal():
            identity = engine.policies.identity(int(text))
            pod = identity is not None and identity.number >= 256
            return int(text), identity.labels if identity and pod else None, ()
        for reserved in Reserved:
            if text in (reserved.label, reserved.label.partition(":")[2]):
                return int(reserved), None, ()
        address = _address(text)
        if address is None:
            raise AnswerError(f"{text!r} is no pod (namespace/name), address, identity or entity")
        for node in engine.cluster.nodes.values():
            if text in node.addresses:
                own = node.name == engine.settings.node
                return int(Reserved.HOST if own else Reserved.REMOTE_NODE), None, ()
        return engine.policies.ranges.of(address), None, ()


def _address(text: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        return None


def _protocol_name(number: int) -> str:
    return next((str(p) for p in Protocol if p.number == number), str(number))

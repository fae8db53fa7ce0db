"""The agent put together: parts, threads, and the order in which they start and end."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from agent import metrics, reclaim
from agent.addresses import pod_ranges
from agent.cni import conflist
from agent.cni.operations import CniOperations
from agent.cni.server import CniServer
from agent.effects import Settings
from agent.endpoints import LocalEndpoint
from agent.engine import Engine
from agent.flows import FlowReader
from agent.identity.allocator import IdentityAllocator
from agent.identity.gc import IdentityCollector
from agent.identity.reserved import FIRST_POD_IDENTITY
from agent.ipam import Ipam, router_address
from agent.links import Links, NetnsGoneError, netns_cookie, open_netns
from agent.model.objects import Node
from agent.node.answers import Answers
from agent.node.server import Flows, NodeServer
from agent.outbox import Outbox
from agent.pins import Pins
from agent.planes.kubernetes.client import Api
from agent.planes.kubernetes.plane import KubernetesPlane
from agent.publish.publisher import Publisher
from agent.redirect.leaver import Leaver
from agent.redirect.view import RedirectView
from agent.revoke import Revoker
from agent.services.health import HealthPorts
from agent.settings import AgentSettings
from datapath import links as host_links
from datapath.tables import AddressKey
from datapath.tables import Endpoint as EndpointEntry

VERSION = "0.1.0"
Log = Callable[..., None]


class Agent:
    """The whole agent of one node. `start` raises OSError where the datapath is not there."""

    def __init__(self, settings: AgentSettings, log: Log) -> None:
        self._settings = settings
        self._log = log
        self._stop = threading.Event()
        self._pins = Pins(settings.pins)
        self._ipam = Ipam(settings.state / "addresses.json")
        self._links = Links(self._mtu)
        self._api = Api(settings.kubeconfig)
        self._allocator = IdentityAllocator(self._api)
        self._metrics = metrics.Metrics()
        self._flows = Flows()
        self._outbox = Outbox(4, log)
        self.engine = Engine(
            Settings(settings.node, settings.pods_range, settings.services_range),
            self._pins.maps,
            self._ipam,
            self._allocator,
            log,
        )
        self._revoker = Revoker(self._pins.maps, self._endpoint_entries, log)
        self._health = HealthPorts(self._healthy)
        self.engine.effects = Publisher(
            self.engine,
            self._api,
            self._allocator,
            self._outbox,
            log,
            self._network,
            self._revoker,
            self._health.apply,
        )
        self._plane = KubernetesPlane(self._api, settings.node, log)
        self._operations = CniOperations(
            self.engine,
            self._ipam,
            self._links,
            self._pins,
            self._allocator,
            lambda: settings.node_address,
            log,
        )
        self._cni = CniServer(settings.run / "cni.sock", self._operations, log, self._metrics.observe_cni)
        self._leaver = Leaver(self._pins.maps, self._netns, log)
        self._redirect = RedirectView(self._pins.maps, self._pins.plain_ports, self._leaver.staying, log)
        self._reader = FlowReader(
            self._pins.maps.events_fd, self._flows, self._endpoint_name, self._rule_name
        )
        answers = Answers(
            self.engine, self._ipam, self._plane, self._outbox, self._pins.describe, self._redirect, VERSION
        )
        self._node = NodeServer(settings.run / "agent.sock", answers.answer, self._flows, log)

    def start(self) -> None:
        """Take over what there is and begin; returns when requests are taken."""
        self.engine.start(self._plane.kinds, self._restore())
        self._outbox.start()
        self._plane.start(self.engine.submit)
        self._cni.start()
        self._node.start()
        self._metrics.watch_datapath(self._counts)
        self._metrics.watch_agent(self._gauges)
        self._metrics.watch_redirect(self._redirect.counts)
        if self._settings.metrics_port:
            metrics.serve(
                self._settings.metrics_address, self._settings.metrics_port, self._metrics, self._healthy
            )
        reclaimer = reclaim.Reclaimer(
            self._ipam,
            reclaim.containerd_sandboxes,
            self._operations.reclaim,
            self._log,
            self._settings.sandbox_wait_seconds,
        )
        collector = IdentityCollector(
            self._api, self._unused_identities, self._log, self._settings.identity_wait_seconds
        )
        for name, body in (
            ("reclaim", reclaimer.run),
            ("identity-gc", collector.run),
            ("revoke", self._revoker.run),
            ("redirect", self._redirect.run),
            ("leaver", self._leaver.run),
            ("flows", self._reader.run),
            ("conflist", self._install),
        ):
            threading.Thread(target=body, args=(self._stop,), name=name, daemon=True).start()

    def stop(self) -> None:
        """End in order: no new requests, finish those under way. The kernel keeps what it has."""
        self._stop.set()
        self._cni.stop()
        self._node.stop()
        self._plane.stop()
        self._outbox.stop()
        self._health.stop()
        self.engine.stop()

    # What a former agent left

    def _restore(self) -> Sequence[LocalEndpoint]:
        """The endpoints of attachments whose cable is there, with the identity that the kernel knows."""
        found = []
        known = set()
        for attachment in self._ipam.all():
            known.add(attachment.host_interface)
            if not attachment.ready:
                continue
            cable = self._links.find(attachment.host_interface, attachment.mac, _cookie(attachment.netns))
            if cable is None:
                continue  # the node was restarted; the runtime will ask for its DEL
            self._pins.attach(cable.host_interface)
            key = AddressKey(address=ipaddress.IPv4Address(attachment.address))
            entry = self._pins.maps.endpoints.get(key)
            identity = entry.identity if entry and entry.id == attachment.endpoint else 0
            found.append(LocalEndpoint(attachment, cable, identity, None))
        for left_over in self._links.all() - known:
            self._links.remove(left_over)
        return found

    # What the parts ask for

    def _mtu(self) -> int:
        name = self._settings.overlay_device
        return int(Path(f"/sys/class/net/{name}/mtu").read_text(encoding="ascii"))

    def _network(self, own: Node, others: Sequence[Node]) -> None:
        """The node's address inside its pod range, and the way to the pods of the others."""
        ranges = pod_ranges(own)
        if not ranges:
            return
        router = ipaddress.IPv4Address(router_address(ranges[0]))
        overlay = host_links.ifindex(self._settings.overlay_device)
        host_links.ensure_router(overlay, router, ipaddress.IPv4Network(self._settings.pods_range))
        self._pins.set_router(router)

    def _endpoint_entries(self) -> dict[int, EndpointEntry]:
        return {
            endpoint.id: entry
            for endpoint in list(self.engine.local.values())
            for entry in endpoint.entries().values()
        }

    def _install(self, stop: threading.Event) -> None:
        """Write the conflist as soon as an ADD would be served, and again should it go missing."""
        while not stop.is_set():
            if self.engine.wait_ready(1.0):
                try:
                    if conflist.install(self._settings.conflist):
                        self._log("info", "network configuration written", path=str(self._settings.conflist))
                except OSError as fault:
                    self._log("error", "network configuration not written", fault=str(fault))
                stop.wait(10.0)

    def _healthy(self) -> bool:
        return self.engine.ready and not self.engine.state.faults

    def _endpoint_name(self, number: int) -> str:
        endpoint = self.engine.local.get(number)
        return str(endpoint.pod) if endpoint else f"endpoint-{number}"

    def _netns(self, number: int) -> str | None:
        endpoint = self.engine.local.get(number)
        return endpoint.attachment.netns if endpoint else None

    def _rule_name(self, number: int) -> str:
        return self.engine.policies.rule_names().get(number, f"rule-{number}")

    def _unused_identities(self) -> list[int]:
        if not self.engine.ready or not self._plane.reachable:
            return []

        def ask() -> list[int]:
            used = {endpoint.identity for endpoint in self.engine.cluster.endpoints.values()}
            used |= {endpoint.identity for endpoint in self.engine.local.values()}
            numbers = (identity.number for identity in self.engine.policies.identities())
            return [number for number in numbers if number >= FIRST_POD_IDENTITY and number not in used]

        return self.engine.ask(ask)

    def _counts(self) -> metrics.DatapathCounts:
        for count in self._pins.maps.metrics.read():
            place = count.place.name.lower().replace("_", "-")
            yield count.reason.name, place, count.packets, count.bytes

    def _gauges(self) -> dict[str, dict[str, float]]:
        sizes = {name: float(size) for name, size in self.engine.state.sizes().items()}
        faults = {name: float(count) for name, count in self.engine.table_faults.items()}
        watches = {str(kind): float(not state.fault) for kind, state in self._plane.watches.items()}
        return {
            "ready": {"": float(self._healthy())},
            "pods_with_forged_labels": {"": float(len(self.engine.forging))},
            "table_entries": sizes,
            "table_write_faults": faults or {"none": 0.0},
            "watch_healthy": watches,
            "redirect_works": {"": float(bool(self._redirect.tested.works))},
            "addresses_held": {"": float(len(self._ipam.all()))},
            "addresses_capacity": {"": float(self._ipam.capacity)},
            "waiting_writes": {"": float(self._outbox.waiting)},
            "flow_events_lost": {"": float(self._pins.maps.metrics.events_lost() + self._reader.foreign)},
        }


def _cookie(netns: str) -> int:
    try:
        with open_netns(netns) as descriptor:
            return netns_cookie(descriptor)
    except (NetnsGoneError, OSError):
        return 0

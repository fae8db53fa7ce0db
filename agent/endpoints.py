"""The endpoints of this node: what an attachment became."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from agent.addresses import Cache, host_key
from agent.ipam import Attachment
from agent.links import Cable, mac_bytes
from agent.model.objects import INJECTED_MARK, REDIRECT_ANNOTATION, Labels, Name, Pod
from agent.policy.compile import NamedPorts
from datapath.constants import NamespaceFlag
from datapath.tables import AddressKey, CacheEntry, Namespace, NamespaceKey
from datapath.tables import Endpoint as EndpointEntry


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """A sandbox of this node that has a cable, an address and an identity.

    `labels` are those of the identity; None when the identity's labels are not known (its object is
    gone and so is its pod): such an endpoint is closed in both directions.
    """

    attachment: Attachment
    cable: Cable
    identity: int
    labels: Labels | None
    ports: NamedPorts = ()
    flags: NamespaceFlag = NamespaceFlag.NONE

    @property
    def id(self) -> int:
        return self.attachment.endpoint

    @property
    def pod(self) -> Name:
        return Name(self.attachment.namespace, self.attachment.pod)

    @property
    def address(self) -> ipaddress.IPv4Address:
        return ipaddress.IPv4Address(self.attachment.address)

    def entries(self) -> dict[AddressKey, EndpointEntry]:
        """Its entry in `endpoints`."""
        return {
            AddressKey(address=self.address): EndpointEntry(
                ifindex=self.cable.ifindex,
                identity=self.identity,
                id=self.id,
                mac=mac_bytes(self.cable.mac),
                host_mac=mac_bytes(self.cable.host_mac),
            )
        }

    def cache(self) -> Cache:
        """Its entry in `ipcache`."""
        return {host_key(self.address): CacheEntry(identity=self.identity)}

    def namespaces(self) -> dict[NamespaceKey, Namespace]:
        """Its entry in `namespaces`."""
        if not self.cable.cookie:
            return {}
        return {NamespaceKey(cookie=self.cable.cookie): Namespace(endpoint=self.id, flags=self.flags)}


def named_ports(pod: Pod) -> NamedPorts:
    """The named ports that the pod's containers declare."""
    return tuple((port.name, port.protocol, port.number) for port in pod.ports if port.name)


def namespace_flags(pod: Pod) -> NamespaceFlag:
    """How the pod's sockets are treated.

    A sidecar decides by the address that the application asked for: it must see the Service's. Whoever
    writes REDIRECT_ANNOTATION with another value than "enabled" means to opt out: plain TCP is always right.
    """
    flags = NamespaceFlag.NONE
    if INJECTED_MARK in pod.annotations:
        flags |= NamespaceFlag.NO_SOCKET_SERVICES | NamespaceFlag.SIDECAR
    if pod.annotations.get(REDIRECT_ANNOTATION, "enabled") != "enabled":
        flags |= NamespaceFlag.NO_REDIRECT
    return flags


def belongs(attachment: Attachment, pod: Pod) -> bool:
    """Whether the sandbox is this pod's, not that of an earlier pod of the same name."""
    same = (attachment.namespace, attachment.pod) == (pod.name.namespace, pod.name.name)
    return same and attachment.pod_uid in ("", pod.uid)

"""ADD, DEL, CHECK, GC and STATUS as the agent does them.

ADD writes in an order in which a crash at any point leaves either nothing or something that DEL, GC or
the reclaimer finds by the attachment's record: the record first, then the cable (host's end down), the
programs on it, the policy and tables, and only then is the cable brought up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from agent.cni.spec import CniError, Code, Request, Result
from agent.effects import NotReadyError
from agent.endpoints import LocalEndpoint, named_ports, namespace_flags
from agent.engine import Engine
from agent.identity.allocator import IdentityAllocator, NoIdentityError
from agent.identity.reserved import RESERVED, Reserved
from agent.ipam import Attachment, Ipam, RangeFullError
from agent.links import GATEWAY, Cable, Links, NetnsGoneError, host_interface_name, mac_of, same_netns
from agent.model.objects import Identity, Name, Pod

POD_SECONDS = 10.0
# What names the list of valid attachments: the specification's word, then libcni's older one.
VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")


class Programs(Protocol):
    """Puts the pinned programs on the host's end of a cable. Raises OSError."""

    def attach(self, host_interface: str) -> None: ...


class KeyedLocks:
    """One lock a key, kept only while somebody holds or wants it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[object, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: object) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)


class CniOperations:
    """The operations of the plugin's socket. One request of an attachment runs at a time."""

    def __init__(
        self,
        engine: Engine,
        ipam: Ipam,
        links: Links,
        programs: Programs,
        allocator: IdentityAllocator,
        host_source: Callable[[], str],
        log: Callable[..., None],
    ) -> None:
        """`host_source` tells the address with which this node speaks to its pods."""
        self._engine = engine
        self._ipam = ipam
        self._links = links
        self._programs = programs
        self._allocator = allocator
        self._host_source = host_source
        self._log = log
        self._locks = KeyedLocks()

    def add(self, request: Request) -> dict[str, Any]:
        """Wire the sandbox up; the result in the words of the request's version."""
        if not self._engine.wait_ready(5.0):
            raise CniError(Code.TRY_AGAIN_LATER, "the agent does not know the cluster yet")
        with self._locks.hold(request.owner):
            if same_netns_or_raise(request.netns):
                raise CniError(Code.INVALID_ENVIRONMENT, "CNI_NETNS is the host's namespace")
            held = self._ipam.get(*request.owner)
            if held is not None and held.ready:
                raise CniError(Code.INVALID_ENVIRONMENT, "the attachment is there already", held.address)
            name, uid = _pod_of(request)
            try:
                attachment = self._ipam.allocate(
                    Attachment(
                        container=request.container,
                        interface=request.interface,
                        address="",
                        namespace=name.namespace,
                        pod=name.name,
                        pod_uid=uid,
                        netns=request.netns,
                        host_interface=host_interface_name(*request.owner),
                        mac=mac_of(*request.owner),
                        since=0.0,
                    )
                )
            except RangeFullError as fault:
                raise CniError(Code.NO_ADDRESS, "no address is free", str(fault)) from fault
            try:
                identity, pod = self._identity(name, uid, attachment.address)
                return self._wire(request, attachment, identity, pod)
            except BaseException:
                self._undo(attachment)
                raise

    def _wire(
        self, request: Request, attachment: Attachment, identity: Identity, pod: Pod | None
    ) -> dict[str, Any]:
        try:
            cable = self._links.create(
                request.netns, request.interface, attachment.host_interface, attachment.mac
            )
            self._programs.attach(cable.host_interface)
            endpoint = LocalEndpoint(attachment, cable, identity.number, identity.labels)
            if pod is not None:
                endpoint = replace(endpoint, ports=named_ports(pod), flags=namespace_flags(pod))
            self._engine.call(lambda: self._engine.put_endpoint(endpoint))
            self._links.configure(request.netns, request.interface, attachment.address, cable.host_mac)
            self._links.connect(cable, attachment.address, self._host_source())
        except NetnsGoneError as fault:
            raise CniError(Code.UNKNOWN_CONTAINER, "the network namespace is gone", str(fault)) from fault
        except NotReadyError as fault:
            raise CniError(Code.TRY_AGAIN_LATER, "the pod's tables cannot be written", str(fault)) from fault
        self._ipam.finish(attachment)
        return self._result(request, attachment, cable).to_json(request.version)

    def _result(self, request: Request, attachment: Attachment, cable: Cable) -> Result:
        return Result(
            interface=request.interface,
            netns=request.netns,
            mac=cable.mac,
            host_interface=cable.host_interface,
            host_mac=cable.host_mac,
            address=attachment.address,
            gateway=GATEWAY,
            mtu=cable.mtu,
        )

    def _identity(self, name: Name, uid: str, address: str) -> tuple[Identity, Pod | None]:
        """Who the sandbox is. One that is no pod's is `init`: no policy for pods selects or names it."""
        if not name.name:
            return RESERVED[Reserved.INIT], None
        found = self._engine.wait_pod(name, uid, address, POD_SECONDS)
        if found is None:
            raise CniError(Code.TRY_AGAIN_LATER, "the pod is not known yet", f"{name} {uid}")
        pod, labels = found
        try:
            return self._allocator.allocate(labels), pod
        except NoIdentityError as fault:
            raise CniError(Code.TRY_AGAIN_LATER, "no identity for the pod", str(fault)) from fault

    def delete(self, request: Request) -> None:
        """Take the attachment down. What is not there (any more) is down."""
        with self._locks.hold(request.owner):
            self.forget(*request.owner)

    def forget(self, container: str, interface: str) -> bool:
        """Take down what the attachment has, by its own record alone; returns whether there was any.

        The record goes last: until then a repeated DEL finds what is left to do.
        """
        attachment = self._ipam.get(container, interface)
        if attachment is None:
            self._links.remove(host_interface_name(container, interface))
            return False
        self._undo(attachment)
        return True

    def reclaim(self, container: str, interface: str) -> bool:
        """`forget` for who is no request: not while a request of the attachment runs."""
        with self._locks.hold((container, interface)):
            return self.forget(container, interface)

    def _undo(self, attachment: Attachment) -> None:
        try:
            self._engine.call(lambda: self._engine.remove_endpoint(attachment.endpoint))
        except NotReadyError as fault:
            # Without its cable nothing reaches the endpoint; the tables follow as soon as they can.
            self._log("warning", "endpoint taken down later", fault=str(fault), pod=attachment.pod)
        self._links.remove(attachment.host_interface)
        self._ipam.release(attachment.container, attachment.interface)

    def check(self, request: Request) -> None:
        """Whether the attachment is still what ADD said it was."""
        attachment = self._ipam.get(*request.owner)
        if attachment is None or not attachment.ready:
            raise CniError(Code.UNKNOWN_CONTAINER, "the attachment is not there", request.container)
        expected = {
            str(ip.get("address", "")).split("/")[0] for ip in request.config["prevResult"].get("ips") or []
        }
        if attachment.address not in expected:
            raise CniError(
                Code.CHECK_FAILED, "the result does not hold the pod's address", attachment.address
            )
        if self._links.find(attachment.host_interface, attachment.mac) is None:
            raise CniError(
                Code.CHECK_FAILED, "the host's end of the cable is gone", attachment.host_interface
            )
        try:
            mac, addresses, routes = self._links.inspect(request.netns, request.interface)
        except NetnsGoneError as fault:
            raise CniError(Code.CHECK_FAILED, "the network namespace is gone", str(fault)) from fault
        except LookupError as fault:
            raise CniError(
                Code.CHECK_FAILED, "the interface is gone from the sandbox", request.interface
            ) from fault
        if mac != attachment.mac or attachment.address not in addresses:
            raise CniError(Code.CHECK_FAILED, "the interface has another address", f"{mac} {addresses}")
        if "default/0" not in routes:
            raise CniError(Code.CHECK_FAILED, "the default route is gone", ", ".join(sorted(routes)))

    def collect(self, request: Request) -> None:
        """Take down every attachment that the runtime does not list as valid.

        libcni may send no list at all (it has then ended what it knew of by DEL), which judges nothing, and
        null for an empty one.
        """
        given = [name for name in VALID_ATTACHMENTS if name in request.config]
        if not given:
            return
        listed = request.config[given[0]] or []
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            raise CniError(Code.INVALID_CONFIGURATION, f"{given[0]} must be a list of objects")
        valid = {(str(item.get("containerID")), str(item.get("ifname"))) for item in listed}
        for attachment in self._ipam.all():
            if attachment.owner not in valid:
                self.reclaim(*attachment.owner)

    def status(self, request: Request) -> None:
        """Whether an ADD would be served."""
        if not self._engine.ready:
            raise CniError(Code.NOT_AVAILABLE, "the agent does not know the cluster yet")
        if self._engine.state.faults:
            raise CniError(
                Code.NOT_AVAILABLE, "tables cannot be written", ", ".join(sorted(self._engine.state.faults))
            )


def same_netns_or_raise(path: str) -> bool:
    """`same_netns`, with the specification's error for a namespace that is not there."""
    try:
        return same_netns(path)
    except OSError as fault:
        raise CniError(Code.UNKNOWN_CONTAINER, "the network namespace is gone", str(fault)) from fault


def _pod_of(request: Request) -> tuple[Name, str]:
    arguments = request.arguments
    name = Name(arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", ""))
    return name, arguments.get("K8S_POD_UID", "")

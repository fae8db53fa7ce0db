# ruff: noqa: RUF009
"""Every key and value of every pinned map, as frozen dataclasses.

The C side is `include/types.h` (structs, same names and order) and `include/maps.h` (types, sizes, layout
versions, and the table of who writes and reads each map). `datapath.maps` opens the maps by the classes
here. The sync side of the agent compares dictionaries of these records and writes the difference.

Rules that hold everywhere
- Addresses are 128 bits, IPv4 as v4-mapped. Ports are Python ints.
- An identity is 24 bits for what crosses the wire. 0 is "any" in a policy key and "not known" elsewhere.
  `LOCAL_IDENTITY` (bit 24) marks identities that live on one node (CIDR ranges); they never leave it.
- Times are nanoseconds of CLOCK_MONOTONIC.

Order of writes for a new pod, so that it has no network before its policy is in the kernel
  1. programs on the host's end of the veth (`datapath.attach`), link still down
  2. `policies[endpoint id]`  3. `ipcache[address/128]`  4. `endpoints[address]`, last: without it every
     packet from or to the pod is dropped (`source-spoofed`, `no-endpoint`).
For a policy change: replace `policies[endpoint id]` by a new inner map, THEN add 1 to
`revisions[endpoint id]`. Established connections are looked at again on their next packet when the
revision has moved (or the peer's identity has); idle ones when the agent nudges them (`datapath.nudge`).
For the end of a pod: `endpoints`, `ipcache`, `policies` in this order; `conntrack` entries carry the
endpoint id, so a re-used address never meets them. An endpoint id must not be given again before
`conntrack.purge(id)`.
"""

from dataclasses import dataclass

from datapath.codec import UNSPECIFIED, Address, Record, addr, be16, ethernet, pad, text, u8, u16, u32, u64


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressKey(Record):
    """Key of `endpoints` and `nodes`."""

    C_NAME = "addr"
    address: Address = addr()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Record):
    """Value of `endpoints`: a pod of this node.

    ifindex: the host's end of its veth. id: 1..65535, unique on the node among living pods.
    mac: of the pod's end; frames with another source are dropped. host_mac: of the host's end (the gateway).
    """

    C_NAME = "endpoint"
    ifindex: int = u32()
    identity: int = u32()
    id: int = u16()
    flags: int = u16(0)
    mac: bytes = ethernet()
    host_mac: bytes = ethernet()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixKey(Record):
    """Key of `ipcache`: longest prefix wins. prefix counts from the 128-bit address (IPv4 /24 is 120)."""

    C_NAME = "prefix_key"
    prefix: int = u32()
    address: Address = addr()


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry(Record):
    """Value of `ipcache`: who has an address and where it lives. No entry means the identity WORLD.

    tunnel: address of the node to send to over the overlay, `::` for what is not behind it.
    Needed entries: each pod of the cluster (/128, local ones too, with tunnel `::`); each node's address
    and router address (REMOTE_NODE with tunnel = that node's address; this node's own: HOST, tunnel `::`);
    each node's pod range (UNKNOWN, flag RANGE, tunnel; its own: tunnel `::`); each CIDR of a policy (local
    identity); external IPs of services (WORLD, SERVICE).
    """

    C_NAME = "cache_entry"
    tunnel: Address = addr(UNSPECIFIED)
    identity: int = u32()
    flags: int = u16(0)
    _pad: bytes = pad(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(Record):
    """Value of `nodes`: a node of the cluster; overlay packets from other addresses are dropped."""

    C_NAME = "node"
    id: int = u32()
    flags: int = u32(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointId(Record):
    """Key of `policies` and `revisions`: the node-local endpoint id."""

    C_NAME = "endpoint_id"
    id: int = u32()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKey(Record):
    """Key inside `policies[id]` (a trie): identity and direction are always exact, protocol and port may be
    cut.

    prefix: 40 = any protocol, 48 = any port of the protocol, 48 + n = the n leading bits of the port.
    A port range is several entries, one for each aligned block. An ALLOW that a DENY of the same identity
    covers must not be there: the longest match alone is looked at.
    """

    C_NAME = "policy_key"
    prefix: int = u32()
    identity: int = u32()
    direction: int = u8()
    protocol: int = u8(0)
    port: int = be16(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEntry(Record):
    """Value inside `policies[id]`.

    Two look-ups are made for a packet, with the peer's identity and with ANY_IDENTITY; each takes its
    longest match. Nothing found: denied. A DENY from either: denied. Both allow: the one with the larger
    `specificity` counts, the exact identity's on a tie. ICMP uses the type as its port.

    rule: id of the rule that caused it, shown in flows. rule_set: L7 rules, 0 for none. proxy_port: 0 for
    none; an entry with a proxy port that no proxy serves is dropped (`proxy-unavailable`), never passed.
    specificity: prefix - 40.
    """

    C_NAME = "policy_entry"
    rule: int = u32(0)
    rule_set: int = u32(0)
    proxy_port: int = be16(0)
    verdict: int = u8()
    flags: int = u8(0)
    specificity: int = u8(0)
    _pad: bytes = pad(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision(Record):
    """Value of `revisions`: how often the endpoint's policy has been replaced."""

    C_NAME = "revision"
    revision: int = u64()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowKey(Record):
    """Key of `conntrack`: a connection as one endpoint sees it, whoever opened it.

    A connection between two pods of one node has two entries. Ports of ICMP echo: the id is the local port
    of who asked, the other is 0.
    """

    C_NAME = "flow_key"
    local: Address = addr()
    peer: Address = addr()
    local_port: int = be16()
    peer_port: int = be16()
    protocol: int = u8()
    _pad: bytes = pad(1)
    endpoint: int = u16()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConntrackEntry(Record):
    """Value of `conntrack`, written by the programs alone. direction: of the packet that opened the
    connection.
    """

    C_NAME = "conntrack_entry"
    expires: int = u64()
    created: int = u64()
    revision: int = u64()
    tx_packets: int = u64()
    tx_bytes: int = u64()
    rx_packets: int = u64()
    rx_bytes: int = u64()
    peer_identity: int = u32()
    rule: int = u32()
    rule_set: int = u32()
    proxy_port: int = be16()
    flags: int = u16()
    verdict: int = u8()
    direction: int = u8()
    _pad: bytes = pad(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKey(Record):
    """Key of `services`.

    ClusterIP: (ip, port, CLUSTER). External and load-balancer IPs: both scopes. NodePort: address `::`,
    both scopes; it stands for every address in `nodes`. hostPort: (this node's address, port), both scopes,
    KEEP_SOURCE.
    """

    C_NAME = "service_key"
    address: Address = addr()
    port: int = be16()
    protocol: int = u8()
    scope: int = u8(0)
    _pad: bytes = pad(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Record):
    """Value of `services`. `backends` slots 0..count-1 of `id` hold its backends; count 0 is refused at
    connect().

    To change a service: write slots of a NEW id, then this entry, then delete the old id's slots (and
    members). affinity: id under which clients are remembered; it must survive such a change.
    """

    C_NAME = "service"
    id: int = u32()
    affinity: int = u32(0)
    affinity_seconds: int = u32(0)
    count: int = u16()
    flags: int = u16(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendKey(Record):
    """Key of `backends`."""

    C_NAME = "backend_key"
    service: int = u32()
    slot: int = u32()


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend(Record):
    """Value of `backends`. id: any number that names (address, port, protocol) for as long as it lives."""

    C_NAME = "backend"
    address: Address = addr()
    id: int = u32()
    port: int = be16()
    _pad: bytes = pad(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberKey(Record):
    """Key of `members`: only for services with AFFINITY, one per backend."""

    C_NAME = "member_key"
    service: int = u32()
    backend: int = u32()


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Record):
    """Value of `members`: the slot where the backend stands now."""

    C_NAME = "member"
    slot: int = u32()


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityKey(Record):
    """Key of `affinity`. client_cookie: network-namespace cookie of a socket's client, else 0 and the
    address.
    """

    C_NAME = "affinity_key"
    client: Address = addr()
    client_cookie: int = u64()
    service: int = u32()
    _pad: bytes = pad(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity(Record):
    """Value of `affinity`, written by the programs."""

    C_NAME = "affinity_entry"
    last_used: int = u64()
    backend: int = u32()
    _pad: bytes = pad(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginKey(Record):
    """Key of `origins`: a socket and the backend it talks to."""

    C_NAME = "origin_key"
    cookie: int = u64()
    peer: Address = addr()
    peer_port: int = be16()
    protocol: int = u8()
    _pad: bytes = pad(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(Record):
    """Value of `origins`: the service address that the application used."""

    C_NAME = "origin"
    address: Address = addr()
    service: int = u32()
    port: int = be16()
    _pad: bytes = pad(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceKey(Record):
    """Key of `namespaces`: the cookie of a pod's network namespace (SO_NETNS_COOKIE)."""

    C_NAME = "namespace_key"
    cookie: int = u64()


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace(Record):
    """Value of `namespaces`: whose namespace it is."""

    C_NAME = "namespace"
    endpoint: int = u32()
    flags: int = u32(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationKey(Record):
    """Key of `translations`: the addresses and ports of a packet before its rewrite."""

    C_NAME = "translation_key"
    source: Address = addr()
    destination: Address = addr()
    source_port: int = be16()
    destination_port: int = be16()
    protocol: int = u8()
    kind: int = u8()
    _pad: bytes = pad(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation(Record):
    """Value of `translations`: what the packet is rewritten to; written by the programs.

    ifindex: for replies to clients outside, the device that the request came by; else 0.
    """

    C_NAME = "translation"
    source: Address = addr()
    destination: Address = addr()
    source_port: int = be16()
    destination_port: int = be16()
    ifindex: int = u32()
    used: int = u64()


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentKey(Record):
    """Key of `fragments`: one fragmented packet."""

    C_NAME = "fragment_key"
    source: Address = addr()
    destination: Address = addr()
    id: int = be16()
    protocol: int = u8()
    _pad: bytes = pad(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment(Record):
    """Value of `fragments`: the ports that only the first fragment carries."""

    C_NAME = "fragment"
    source_port: int = be16()
    destination_port: int = be16()


@dataclass(frozen=True, slots=True, kw_only=True)
class Index(Record):
    """Key of every array."""

    C_NAME = "array_index"
    index: int = u32()


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter(Record):
    """Value of `metrics` (one per CPU). Index: reason * 4 + place, see `metric_index`."""

    C_NAME = "counter"
    packets: int = u64()
    bytes: int = u64()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Record):
    """The one value of `config`, written by the loader at `up` (and by the agent when it learns more).

    node: address that other nodes tunnel to. router: this node's address inside its pod range, source of
    what host processes send to pods of other nodes. gateway: link-local address that pods route to.
    loopback: source of a pod that reaches itself through a service. pod_range/pod_mask: all pods of the
    cluster. service_range/service_mask: ClusterIPs. Timeouts in seconds. events_per_second: flow events per
    CPU, 0 for none. events_wakeup: bytes waiting in the ring before the reader is woken (it polls anyway).
    flags: see `ConfigFlag`. redirect_budget: unread bytes of one direction that may be redirected, in KiB.
    """

    C_NAME = "config"
    node: Address = addr()
    router: Address = addr(UNSPECIFIED)
    gateway: Address = addr()
    loopback: Address = addr()
    pod_range: Address = addr()
    pod_mask: Address = addr()
    service_range: Address = addr()
    service_mask: Address = addr()
    host_namespace: int = u64(0)
    overlay_ifindex: int = u32(0)
    underlay_ifindex: int = u32(0)
    overlay_port: int = be16(8472)
    flags: int = u16(0)
    events_per_second: int = u32(1000)
    events_wakeup: int = u32(65536)
    syn_timeout: int = u32(60)
    tcp_timeout: int = u32(21600)
    close_timeout: int = u32(10)
    datagram_timeout: int = u32(180)
    other_timeout: int = u32(60)
    nudge_mark: int = u32(0)
    redirect_budget: int = u16(0)
    _pad: bytes = pad(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBudget(Record):
    """Value of `event_budget` (one per CPU): token bucket of flow events."""

    C_NAME = "event_budget"
    refilled: int = u64()
    tokens: int = u64()
    lost: int = u64()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEvent(Record):
    """One message of the ring `events`: a connection opened, refused, closed, or a packet dropped.

    reason: see `datapath.reasons`. endpoint: the local pod concerned (0: none). local/peer as in `FlowKey`.
    direction: of the packet, seen from the endpoint. tcp_flags: as on the wire. messages, bytes: what went
    from socket to socket, both directions together, when an accelerated connection ends, and latency the mean
    time from send to read in nanoseconds (0: none was sampled); else 0.
    """

    C_NAME = "flow_event"
    time: int = u64()
    local: Address = addr()
    peer: Address = addr()
    local_port: int = be16()
    peer_port: int = be16()
    peer_identity: int = u32()
    rule: int = u32()
    rule_set: int = u32()
    ifindex: int = u32()
    length: int = u32()
    endpoint: int = u16()
    reason: int = u8()
    direction: int = u8()
    protocol: int = u8()
    tcp_flags: int = u8()
    place: int = u8()
    _pad: bytes = pad(1)
    messages: int = u64(0)
    bytes: int = u64(0)
    latency: int = u64(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapName(Record):
    """Key of `layouts`: the name of a pinned map."""

    C_NAME = "map_name"
    name: str = text(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutVersion(Record):
    """Value of `layouts`: version of the layout that the pinned map was made with."""

    C_NAME = "layout_version"
    version: int = u32()

"""Numbers that the programs and Python share: identities, flags, places. The C side is
`include/constants.h`.
"""

import enum

ANY_IDENTITY = 0
MAX_CLUSTER_IDENTITY = (1 << 24) - 1
MIN_CLUSTER_IDENTITY = 256
LOCAL_IDENTITY = 1 << 24
PROXY_UID = 1337  # as whom a sidecar runs, the user whose connections Istio's own rules leave alone
NUDGE_MARK = 0x0DA70000  # mark of packets that the datapath or the agent made


class Identity(enum.IntEnum):
    """Reserved identities (Cilium's numbers). Of these only REMOTE_NODE is ever accepted from the overlay."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8


class Direction(enum.IntEnum):
    """Seen from the endpoint: INGRESS is towards the pod."""

    INGRESS = 0
    EGRESS = 1


class Verdict(enum.IntEnum):
    """What a policy entry says. There is no entry for "nothing matches": that is a denial."""

    ALLOW = 1
    DENY = 2


class EndpointFlag(enum.IntFlag):
    """Flags of `Endpoint`."""

    NONE = 0


class CacheFlag(enum.IntFlag):
    """Flags of `CacheEntry`.

    RANGE: a node's whole pod range. From that node any cluster identity is believed for addresses that have
    no entry of their own yet; towards such an address packets are dropped (`identity-unknown`).
    SERVICE: an address that only services have (a cluster IP or range, an external IP): packets that no
    service translates are refused, never routed.
    """

    NONE = 0
    RANGE = 1
    SERVICE = 2


class NodeFlag(enum.IntFlag):
    """Flags of `Node`. LOCAL: an address of this very node (the underlay's and the router address)."""

    NONE = 0
    LOCAL = 1


class PolicyFlag(enum.IntFlag):
    """Flags of `PolicyEntry`. AUTH_REQUIRED: dropped (`auth-required`) until the pair is authenticated."""

    NONE = 0
    AUTH_REQUIRED = 1


class ConntrackFlag(enum.IntFlag):
    """Flags of `ConntrackEntry`."""

    NONE = 0
    SEEN_REPLY = 1
    LOCAL_FIN = 2
    PEER_FIN = 4
    RESET = 8
    TRANSLATED = 16
    FROM_HOST = 32
    REVOKED = 64


class ServiceFlag(enum.IntFlag):
    """Flags of `Service`.

    AFFINITY: the same client gets the same backend for `affinity_seconds`.
    KEEP_SOURCE: no source translation (externalTrafficPolicy Local, hostPort): backends are all on this node.
    DROP_IF_EMPTY: no backend here means silence (externalTrafficPolicy Local), not a refusal.
    """

    NONE = 0
    AFFINITY = 1
    KEEP_SOURCE = 2
    DROP_IF_EMPTY = 4


class Scope(enum.IntEnum):
    """Which clients a service entry serves: sockets and pods of this cluster, or packets from outside."""

    CLUSTER = 0
    EXTERNAL = 1


class NamespaceFlag(enum.IntFlag):
    """Flags of `Namespace`.

    NO_SOCKET_SERVICES: leave the pod's own sockets alone (a sidecar must see the service's address), but for
    those of PROXY_UID; its packets to services are translated at its veth instead.
    SIDECAR: connections inside the pod, and those that a proxy in it intercepts, are accelerated too.
    NO_REDIRECT: no connection of the pod is accelerated.
    """

    NONE = 0
    NO_SOCKET_SERVICES = 1
    SIDECAR = 2
    NO_REDIRECT = 4


class ConfigFlag(enum.IntFlag):
    """Flags of `Config`. REDIRECT: connections between pods of this node are accelerated."""

    NONE = 0
    REDIRECT = 1


class Side(enum.IntEnum):
    """Which end of an accelerated connection a socket is."""

    CLIENT = 0
    SERVER = 1


class Stage(enum.IntEnum):
    """How far a socket has come. OFFERED: its SYN carries a nonce. ENROLLED: it may redirect. PLAIN: TCP for
    ever, `reason` says why. LEFT: it was enrolled, and is plain TCP again.
    """

    IDLE = 0
    OFFERED = 1
    ENROLLED = 2
    PLAIN = 3
    LEFT = 4


class SocketFlag(enum.IntFlag):
    """Flags of `SocketState`: what the application has asked of its socket (or of its listener)."""

    NONE = 0
    LISTENER = 1
    ZEROCOPY = 2
    LOWAT = 4


class Meeting(enum.IntEnum):
    """Who came first: the client's first byte, or the enrolment of the server's socket. PARTED: they had
    met, and all goes by TCP since one of them is to leave, or has left.
    """

    OPEN = 0
    SENT_FIRST = 1
    MET = 2
    PARTED = 3


PARTED_REASON_SHIFT = 8  # in the byte above a stream's meeting: the reason why the two have parted


class DepartureStep(enum.IntEnum):
    """How far a socket's departure is. ASKED: it is to leave. PARTED: both directions go by TCP. LEFT: it is
    plain TCP. RETURN: it is to be redirected again.
    """

    ASKED = 1
    PARTED = 2
    LEFT = 3
    RETURN = 4


class Obstacle(enum.IntEnum):
    """What kept a socket from the next step: somebody is in a call on it; bytes towards it are unread."""

    NONE = 0
    IN_USE = 1
    UNREAD = 2


class TranslationKind(enum.IntEnum):
    """Which rewrite a `TranslationKey` looks for: of a request or of a reply."""

    REQUEST = 0
    REPLY = 1


class Place(enum.IntEnum):
    """Where a packet was counted: towards or from a pod (at its veth), on the overlay device, on the node's
    own devices, or at a socket.
    """

    POD_EGRESS = 0
    POD_INGRESS = 1
    OVERLAY = 2
    HOST = 3
    SOCKET = 4


METRIC_PLACES = 8
METRIC_REASONS = 128


def metric_index(reason: int, place: Place) -> int:
    """Index in `metrics` of a reason at a place."""
    return reason * METRIC_PLACES + place


class Continuation(enum.IntEnum):
    """Slots of the program array `continuations`."""

    RESET = 0
    SERVICE = 1


REDIRECT_SLOT = 0  # of the program arrays `senders` and `readers`

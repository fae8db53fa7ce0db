/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Numbers that the programs and Python share. The Python side is datapath/constants.py, and a unit test
 * holds the two against each other.
 */
#ifndef UNDERPASS_CONSTANTS_H
#define UNDERPASS_CONSTANTS_H

enum identity {
	IDENTITY_UNKNOWN = 0, /* in a policy key: any */
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_UNMANAGED = 3,
	IDENTITY_HEALTH = 4,
	IDENTITY_INIT = 5,
	IDENTITY_REMOTE_NODE = 6,
	IDENTITY_KUBE_APISERVER = 7,
	IDENTITY_INGRESS = 8,
};

#define MIN_CLUSTER_IDENTITY 256
#define MAX_CLUSTER_IDENTITY 0xffffff
#define LOCAL_IDENTITY 0x1000000

enum direction { DIRECTION_INGRESS = 0, DIRECTION_EGRESS = 1 };

enum verdict { VERDICT_ALLOW = 1, VERDICT_DENY = 2 };

enum cache_flag { CACHE_RANGE = 1, CACHE_SERVICE = 2 };

enum node_flag { NODE_LOCAL = 1 };

enum policy_flag { POLICY_AUTH_REQUIRED = 1 };

enum conntrack_flag {
	CONNTRACK_SEEN_REPLY = 1,
	CONNTRACK_LOCAL_FIN = 2,
	CONNTRACK_PEER_FIN = 4,
	CONNTRACK_RESET = 8,
	CONNTRACK_TRANSLATED = 16,
	CONNTRACK_FROM_HOST = 32,
	CONNTRACK_REVOKED = 64,
};

enum service_flag { SERVICE_AFFINITY = 1, SERVICE_KEEP_SOURCE = 2, SERVICE_DROP_IF_EMPTY = 4 };

enum scope { SCOPE_CLUSTER = 0, SCOPE_EXTERNAL = 1 };

enum namespace_flag { NAMESPACE_NO_SOCKET_SERVICES = 1, NAMESPACE_SIDECAR = 2, NAMESPACE_NO_REDIRECT = 4 };

enum config_flag { CONFIG_REDIRECT = 1 };

enum side { SIDE_CLIENT = 0, SIDE_SERVER = 1 };

enum stage { STAGE_IDLE = 0, STAGE_OFFERED = 1, STAGE_ENROLLED = 2, STAGE_PLAIN = 3, STAGE_LEFT = 4 };

enum socket_flag { SOCKET_LISTENER = 1, SOCKET_ZEROCOPY = 2, SOCKET_LOWAT = 4 };

enum meeting { MEETING_OPEN = 0, MEETING_SENT_FIRST = 1, MEETING_MET = 2, MEETING_PARTED = 3 };

/* In the byte above a stream's meeting: the reason why the two have parted. */
#define PARTED_REASON_SHIFT 8

/* How far a socket's departure is: see leave.h. */
enum departure_step { DEPARTURE_ASKED = 1, DEPARTURE_PARTED = 2, DEPARTURE_LEFT = 3, DEPARTURE_RETURN = 4 };

/* What kept it from the next step: somebody is in a call on the socket; bytes towards it are unread. */
enum departure_obstacle { OBSTACLE_IN_USE = 1, OBSTACLE_UNREAD = 2 };

/* As whom a sidecar runs, the user whose connections Istio's own rules leave alone. */
#define PROXY_UID 1337

enum translation_kind { TRANSLATION_REQUEST = 0, TRANSLATION_REPLY = 1 };

enum place { PLACE_POD_EGRESS = 0, PLACE_POD_INGRESS = 1, PLACE_OVERLAY = 2, PLACE_HOST = 3, PLACE_SOCKET = 4 };

#define METRIC_PLACES 8
#define METRIC_REASONS 128

/* Slots of the program array `continuations`. */
enum continuation { CONTINUE_RESET = 0, CONTINUE_SERVICE = 1, CONTINUE_SLOTS = 8 };

/* Slot of the program arrays `senders` and `readers`: there is one program in each. */
#define REDIRECT_SLOT 0

#endif

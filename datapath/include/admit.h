/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * May this packet pass one endpoint's policy? The one place that joins connection tracking and policy; run at the
 * sender for egress and at the receiver for ingress, whatever road the packet takes.
 *
 * - An ICMP error passes when the connection it is about is known.
 * - A packet of a known connection passes while policy revision and peer identity are those of its verdict; when one
 *   has moved, the connection is judged again in the direction it was opened. No longer allowed: it is marked
 *   revoked, and the caller has both ends reset (TCP) or drops (all else).
 * - Revoked is final for TCP, whose ends have been told. A flow of another protocol is judged again when policy moves
 *   again: its ends know nothing, and go on with the same ports. The mark keeps a late reply from opening it anew.
 * - A SYN is always judged: it opens a new connection, even on a tuple that was in use.
 * - Anything else is judged as the first packet of a connection.
 * - From the node's own processes everything passes (probes must not depend on policy).
 *
 * The revision is read before the policy: when the agent replaces the policy in between, the entry holds the older
 * number and is judged again at its next packet.
 */
#ifndef UNDERPASS_ADMIT_H
#define UNDERPASS_ADMIT_H

#include "conntrack.h"
#include "events.h"
#include "identity.h"
#include "metrics.h"
#include "policy.h"

struct admission {
	/* in */
	__u32 identity; /* of the peer */
	__u16 endpoint; /* whose policy */
	__u8 direction;
	__u8 place;
	__u16 new_flags; /* for a new entry */
	/* out */
	__u16 flags; /* of the entry */
	__u8 opened; /* direction in which the connection was opened */
};

/* The port that policy looks at: the server's side of the connection, or the ICMP type. */
static __always_inline __be16 admit_port(const struct packet *packet, __u8 direction, __u8 opened, int first)
{
	if (packet->protocol == PROTOCOL_ICMP)
		return to_be16(first ? packet->icmp_type : ICMP_ECHO_TYPE);
	return direction == opened ? packet->destination_port : packet->source_port;
}

static __always_inline int admit_judge(const struct packet *packet, const struct admission *admission, __u8 opened,
				       int first, __u16 flags, struct policy_entry *found)
{
	if ((flags & CONNTRACK_FROM_HOST) && opened == DIRECTION_INGRESS) {
		__builtin_memset(found, 0, sizeof(*found));
		return 0;
	}
	return policy_judge(admission->endpoint, opened, admission->identity, packet->protocol,
			    admit_port(packet, admission->direction, opened, first), found);
}

static __always_inline void admit_report(struct __sk_buff *skb, const struct config *config,
					 const struct packet *packet, const struct admission *admission,
					 const struct policy_entry *found, __u8 reason)
{
	struct event_details details = {
		.peer_identity = admission->identity,
		.rule = found->rule,
		.rule_set = found->rule_set,
		.endpoint = admission->endpoint,
		.direction = admission->direction,
		.place = admission->place,
	};

	event_emit(skb, config, packet, &details, reason);
}

/* Returns 0 or the reason why not; reasons of policy are reported as flow events here. */
static __always_inline int admit(struct __sk_buff *skb, const struct config *config, const struct packet *packet,
				 struct admission *admission)
{
	struct flow_key key;
	struct conntrack_entry *entry;
	struct policy_entry found = {};
	__u64 now = clock_coarse_ns(); /* to a tick: it is compared in seconds */
	__u64 revision = policy_revision(admission->endpoint);
	int reason;

	conntrack_key(&key, packet, admission->endpoint, admission->direction);
	entry = map_lookup(MAP(conntrack), &key);
	if (entry && entry->expires < now)
		entry = 0;

	if (packet->kind == PACKET_ICMP_ERROR) {
		if (!entry || (entry->flags & CONNTRACK_REVOKED))
			return REASON_ICMP_UNRELATED;
		admission->flags = entry->flags;
		admission->opened = entry->direction;
		return 0;
	}

	if (entry && !packet_is_syn(packet)) {
		__u16 flags = entry->flags;

		admission->flags = flags;
		admission->opened = entry->direction;
		if (unlikely((flags & CONNTRACK_REVOKED) && packet->protocol == PROTOCOL_TCP)) {
			/* Resets may travel; whatever else comes is answered by one. */
			return packet_is_reset(packet) ? 0 : REASON_CONNECTION_REVOKED;
		}
		FORGET(config, flags);
		if (unlikely(entry->revision != revision ||
			     (entry->peer_identity != admission->identity && !(flags & CONNTRACK_FROM_HOST)))) {
			reason = admit_judge(packet, admission, entry->direction, 0, flags, &found);
			entry->revision = revision;
			entry->peer_identity = admission->identity;
			if (reason) {
				if (flags & CONNTRACK_REVOKED)
					return REASON_CONNECTION_REVOKED;
				entry->flags = flags | CONNTRACK_REVOKED;
				entry->verdict = VERDICT_DENY;
				entry->expires = now + config->close_timeout * SECOND_NS;
				admit_report(skb, config, packet, admission, &found, REASON_CONNECTION_REVOKED);
				return REASON_CONNECTION_REVOKED;
			}
			entry->flags = flags & ~CONNTRACK_REVOKED;
			entry->verdict = VERDICT_ALLOW;
			entry->rule = found.rule;
			entry->rule_set = found.rule_set;
		} else if (unlikely(flags & CONNTRACK_REVOKED)) {
			return REASON_CONNECTION_REVOKED;
		}
		if (conntrack_touch(config, entry, packet, admission->direction, now)) {
			found.rule = entry->rule;
			found.rule_set = entry->rule_set;
			admit_report(skb, config, packet, admission, &found, REASON_CLOSED);
		}
		return 0;
	}

	reason = admit_judge(packet, admission, admission->direction, 1, admission->new_flags, &found);
	if (!reason) {
		struct conntrack_entry fresh = {
			.created = now,
			.revision = revision,
			.peer_identity = admission->identity,
			.rule = found.rule,
			.rule_set = found.rule_set,
			.flags = admission->new_flags,
			.verdict = VERDICT_ALLOW,
			.direction = admission->direction,
		};

		conntrack_touch(config, &fresh, packet, admission->direction, now);
		admission->flags = fresh.flags;
		admission->opened = fresh.direction;
		if (map_update(MAP(conntrack), &key, &fresh, BPF_ANY))
			reason = REASON_CONNTRACK_FULL;
	}
	FORGET(config, reason);
	FORGET(config, admission->opened);
	FORGET(config, admission->flags);
	admit_report(skb, config, packet, admission, &found, reason ? reason : REASON_OPENED);
	return reason;
}

#endif

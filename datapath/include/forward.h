/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a pod of this node to wherever: the part that pod_egress and pod_service share, once the sender is known to be
 * who it says and service addresses are translated.
 *
 * The sender's egress policy always runs here. Is the receiver a pod of this node, its ingress policy runs here too,
 * before the packet is moved into its namespace.
 */
#ifndef UNDERPASS_FORWARD_H
#define UNDERPASS_FORWARD_H

#include "admit.h"
#include "continue.h"
#include "deliver.h"
#include "encapsulate.h"
#include "translate.h"

struct target {
	struct endpoint *pod; /* of this node, or 0 */
	struct cache_entry *cache; /* for all others, or 0: outside */
	__u32 identity;
};

static __always_inline int target_find(const struct config *config, const struct addr *address, struct target *target)
{
	target->cache = 0;
	target->pod = endpoint_of(address);
	if (target->pod) {
		target->identity = target->pod->identity;
		return 0;
	}
	target->cache = cache_of(address);
	if (!target->cache) {
		target->identity = IDENTITY_WORLD;
		return addr_in_range(address, &config->pod_range, &config->pod_mask) ? REASON_NO_ENDPOINT : 0;
	}
	target->identity = target->cache->identity;
	if (target->cache->flags & CACHE_RANGE)
		return addr_is_zero(&target->cache->tunnel) ? REASON_NO_ENDPOINT : REASON_IDENTITY_UNKNOWN;
	return 0;
}

/* To a pod of this node. */
static __always_inline int forward_to_pod(struct __sk_buff *skb, const struct config *config, struct packet *packet,
					  __u32 identity, struct endpoint *to)
{
	struct admission ingress = {
		.identity = identity,
		.endpoint = to->id,
		.direction = DIRECTION_INGRESS,
		.place = PLACE_POD_EGRESS,
	};
	__u32 unused;
	int reason = admit(skb, config, packet, &ingress);

	if (reason == REASON_CONNECTION_REVOKED)
		return continue_reset(skb, packet, RESET_BOTH, DIRECTION_INGRESS, reason, PLACE_POD_EGRESS);
	if (reason)
		return dropped(skb, reason, PLACE_POD_EGRESS);
	if ((ingress.flags & CONNTRACK_TRANSLATED) && ingress.opened == DIRECTION_EGRESS) {
		reason = translation_reply(skb, packet, &unused);
		if (reason)
			return dropped(skb, reason, PLACE_POD_EGRESS);
		count(REASON_REPLY_TRANSLATED, PLACE_POD_EGRESS, packet->length);
	}
	return deliver_to_pod(skb, to, PLACE_POD_EGRESS);
}

/* To another node, by the short way if the packet can go it. */
static __always_inline int forward_to_node(struct __sk_buff *skb, const struct config *config,
					   const struct packet *packet, __u32 identity, const struct addr *tunnel)
{
	int action = encapsulate(skb, config, packet, tunnel, identity);

	if (action < 0)
		return deliver_to_node(skb, config, tunnel, identity, PLACE_POD_EGRESS);
	count(action == TC_DROP ? REASON_REWRITE_FAILED : REASON_TO_OVERLAY, PLACE_POD_EGRESS, packet->length);
	return action;
}

static __always_inline int forward_from_pod(struct __sk_buff *skb, const struct config *config, struct packet *packet,
					    const struct endpoint *from, const struct target *target, __u16 new_flags)
{
	__u32 identity = from->identity;
	struct admission egress = {
		.identity = target->identity,
		.endpoint = from->id,
		.direction = DIRECTION_EGRESS,
		.place = PLACE_POD_EGRESS,
		.new_flags = new_flags,
	};
	int reason = admit(skb, config, packet, &egress);

	if (reason == REASON_CONNECTION_REVOKED)
		return continue_reset(skb, packet, RESET_BOTH, DIRECTION_EGRESS, reason, PLACE_POD_EGRESS);
	if (reason)
		return dropped(skb, reason, PLACE_POD_EGRESS);

	if ((egress.flags & CONNTRACK_TRANSLATED) && egress.opened == DIRECTION_INGRESS) {
		/* The reply to a client that came to this node's address: it leaves by the device that one came by. */
		__u32 ifindex = 0;

		reason = translation_reply(skb, packet, &ifindex);
		if (reason)
			return dropped(skb, reason, PLACE_POD_EGRESS);
		if (ifindex == config->overlay_ifindex && target->cache) {
			/* From a pod of another node to a hostPort of this one: the answer comes from the node. */
			count(REASON_REPLY_TRANSLATED, PLACE_POD_EGRESS, packet->length);
			return deliver_to_node(skb, config, &target->cache->tunnel, IDENTITY_REMOTE_NODE,
					       PLACE_POD_EGRESS);
		}
		return passed(skb, REASON_REPLY_TRANSLATED, PLACE_POD_EGRESS, redirect_neighbour(ifindex, 0, 0, 0));
	}
	if (target->pod)
		return forward_to_pod(skb, config, packet, identity, target->pod);
	if (target->cache && !addr_is_zero(&target->cache->tunnel))
		return forward_to_node(skb, config, packet, identity, &target->cache->tunnel);
	if (target->identity == IDENTITY_HOST)
		return passed(skb, REASON_TO_HOST, PLACE_POD_EGRESS, TC_PASS);
	return passed(skb, REASON_TO_OUTSIDE, PLACE_POD_EGRESS, TC_PASS);
}

#endif

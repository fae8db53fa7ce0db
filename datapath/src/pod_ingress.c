/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * pod_ingress: what the host's stack sends to a pod: the node's own processes, and packets from outside.
 *
 * Hook      tcx egress at the host's end of the pod's veth.
 * Contract  Packets of this node's processes (they came in by no device) pass, whatever the policy says, and open a
 *           connection so that the answer passes too. Others are judged by the pod's ingress policy, with the identity
 *           of their source; a source that belongs to the cluster is refused here, since the cluster's pods and nodes
 *           come by the overlay or straight from their veth. ARP is refused: the host has a permanent entry.
 *           Resets that the datapath made, and the agent's nudges, are known by config.nudge_mark, which no pod can
 *           set (the mark does not survive the way out of a namespace).
 * Cost      2 hash look-ups, 1 trie look-up for packets from outside.
 * Kernel    6.6.
 */
#include "forward.h"

/* Who sent it? Returns 0 or a reason. */
static __always_inline int source_identity(struct __sk_buff *skb, const struct packet *packet, __u32 *identity)
{
	struct cache_entry *cache;

	if (!skb->ingress_ifindex) {
		*identity = IDENTITY_HOST;
		return 0;
	}
	cache = cache_of(&packet->sender);
	*identity = cache ? cache->identity : IDENTITY_WORLD;
	if (!cache || *identity >= LOCAL_IDENTITY || *identity == IDENTITY_WORLD)
		return 0;
	return REASON_NOT_TUNNELLED;
}

PROGRAM("tc")
int pod_ingress(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	struct event_details details = { .direction = DIRECTION_INGRESS, .place = PLACE_POD_INGRESS };
	struct admission ingress = { .direction = DIRECTION_INGRESS, .place = PLACE_POD_INGRESS };
	struct endpoint *to;
	struct packet packet;
	__u32 unused;
	int reason, marked;

	if (!config)
		return dropped(skb, REASON_NOT_CONFIGURED, PLACE_POD_INGRESS);
	if (skb->protocol == to_be16(ETH_P_ARP)) {
		/* The answer that pod_egress sends back through this hook. */
		return skb->ingress_ifindex == skb->ifindex ? TC_PASS :
							      dropped(skb, REASON_ARP_REFUSED, PLACE_POD_INGRESS);
	}
	if (skb->protocol != to_be16(ETH_P_IP))
		return dropped(skb, REASON_PROTOCOL_UNSUPPORTED, PLACE_POD_INGRESS);
	reason = packet_parse(skb, &packet);
	if (reason)
		return dropped(skb, reason, PLACE_POD_INGRESS);
	packet_forget(config, &packet);
	to = endpoint_of(&packet.destination);
	if (!to || to->ifindex != skb->ifindex)
		return dropped_flow(skb, config, &packet, &details, REASON_NO_ENDPOINT);
	details.endpoint = to->id;
	ingress.endpoint = to->id;

	marked = config->nudge_mark && skb->mark == config->nudge_mark;
	if (marked && !packet_is_reset(&packet))
		return passed(skb, REASON_NUDGED, PLACE_POD_INGRESS, TC_PASS);
	reason = source_identity(skb, &packet, &ingress.identity);
	details.peer_identity = ingress.identity;
	if (reason && !marked)
		return dropped_flow(skb, config, &packet, &details, reason);

	if (ingress.identity == IDENTITY_HOST)
		ingress.new_flags = CONNTRACK_FROM_HOST;
	else if (translation_replies_to(&packet))
		ingress.new_flags = CONNTRACK_TRANSLATED;
	reason = admit(skb, config, &packet, &ingress);
	if (reason == REASON_CONNECTION_REVOKED)
		return continue_reset(skb, &packet, RESET_BOTH, DIRECTION_INGRESS, reason, PLACE_POD_INGRESS);
	if (reason)
		return dropped(skb, reason, PLACE_POD_INGRESS);
	if ((ingress.flags & CONNTRACK_TRANSLATED) && ingress.opened == DIRECTION_EGRESS) {
		reason = translation_reply(skb, &packet, &unused);
		if (reason)
			return dropped_flow(skb, config, &packet, &details, reason);
		count(REASON_REPLY_TRANSLATED, PLACE_POD_INGRESS, packet.length);
	}
	return passed(skb, REASON_TO_POD, PLACE_POD_INGRESS, TC_PASS);
}

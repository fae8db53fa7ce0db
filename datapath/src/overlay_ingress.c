/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * overlay_ingress: packets from other nodes, out of their VXLAN header.
 *
 * Hook      tcx ingress of the node's overlay device (VXLAN, collect metadata).
 * Contract  The outer source must be a node of the cluster, the inner source must live on that node, and the identity
 *           in the VNI must be the one known for the inner source. Where that source is not known yet, but lies in the
 *           node's pod range, any cluster identity is believed: it is the node's to give. Of the reserved identities
 *           only "remote node" is accepted. The receiver's ingress policy runs, then the packet is moved into the
 *           pod's namespace. Replies to translated NodePort requests go back to their client; what is for a hostPort
 *           of this node goes to its pod, with its source kept; what else is for this node goes to its stack.
 * Cost      Known connection: 2 hash look-ups and a trie for addresses, 1 for the connection; 1 more to a hostPort.
 * Kernel    6.6.
 */
#include "forward.h"

/* Is the identity the sender's to use? Returns 0 or a reason. */
static __always_inline int overlay_check(const struct packet *packet, const struct addr *outer, __u32 identity)
{
	struct node *node = node_of(outer);
	struct cache_entry *cache;

	if (!node || (node->flags & NODE_LOCAL))
		return REASON_OVERLAY_NOT_NODE;
	if (identity < MIN_CLUSTER_IDENTITY && identity != IDENTITY_REMOTE_NODE)
		return REASON_OVERLAY_RESERVED;
	cache = cache_of(&packet->sender);
	if (!cache || !addr_equal(&cache->tunnel, outer))
		return REASON_OVERLAY_SOURCE;
	if (cache->flags & CACHE_RANGE)
		return identity >= MIN_CLUSTER_IDENTITY ? 0 : REASON_OVERLAY_IDENTITY;
	return cache->identity == identity ? 0 : REASON_OVERLAY_IDENTITY;
}

/*
 * To a hostPort of this node, from a pod of another: the packet becomes one to the pod that has the port. The pod's
 * answers find their way back by the device that is remembered here. Returns 0, also where there is nothing to do.
 */
static __always_inline int overlay_host_port(struct __sk_buff *skb, const struct config *config, struct packet *packet)
{
	struct translation *known = translation_find(packet, TRANSLATION_REQUEST);
	struct translation to = {};
	struct service *service;
	struct backend *backend;
	int reason;

	if (known) {
		known->used = clock_coarse_ns();
		to = *known;
	} else {
		if (!protocol_has_ports(packet->protocol) || packet->kind == PACKET_ICMP_ERROR)
			return 0;
		service = service_at(&packet->destination, packet->destination_port, packet->protocol, SCOPE_EXTERNAL);
		if (!service || !service->count)
			return 0;
		backend = service_slot(service->id, 0);
		if (!backend || !endpoint_of(&backend->address))
			return 0;
		to.source = packet->source;
		to.source_port = packet->source_port;
		to.destination = backend->address;
		to.destination_port = backend->port;
		to.used = clock_coarse_ns();
		reason = translation_add(packet, &to, 0, config->overlay_ifindex);
		if (reason)
			return reason;
	}
	if (rewrite_tuple(skb, packet, &to, TRANSLATION_REQUEST))
		return REASON_REWRITE_FAILED;
	count(REASON_SERVICE_TRANSLATED, PLACE_OVERLAY, packet->length);
	return 0;
}

/* For this node: an answer to a request that it sent on for somebody outside, or something of its own. */
static __always_inline int overlay_to_host(struct __sk_buff *skb, const struct config *config, struct packet *packet)
{
	__u32 ifindex = 0;
	int reason;

	if (addr_equal(&packet->destination, &config->router)) {
		reason = translation_reply(skb, packet, &ifindex);
		if (!reason)
			return passed(skb, REASON_REPLY_TRANSLATED, PLACE_OVERLAY, redirect_neighbour(ifindex, 0, 0, 0));
		if (reason != REASON_TRANSLATION_MISSING)
			return dropped(skb, reason, PLACE_OVERLAY);
	}
	return passed(skb, REASON_TO_HOST, PLACE_OVERLAY, TC_PASS);
}

PROGRAM("tc")
int overlay_ingress(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	struct event_details details = { .direction = DIRECTION_INGRESS, .place = PLACE_OVERLAY };
	struct admission ingress = { .direction = DIRECTION_INGRESS, .place = PLACE_OVERLAY };
	struct bpf_tunnel_key tunnel = {};
	struct endpoint *to;
	struct packet packet;
	struct addr outer;
	struct node *node;
	__u32 unused;
	int reason;

	if (!config)
		return dropped(skb, REASON_NOT_CONFIGURED, PLACE_OVERLAY);
	if (tunnel_get(skb, &tunnel, sizeof(tunnel), 0))
		return dropped(skb, REASON_OVERLAY_NOT_NODE, PLACE_OVERLAY);
	if (skb->protocol != to_be16(ETH_P_IP) || skb->vlan_present)
		return dropped(skb, REASON_PROTOCOL_UNSUPPORTED, PLACE_OVERLAY);
	reason = packet_parse(skb, &packet);
	if (reason)
		return dropped(skb, reason, PLACE_OVERLAY);
	packet_forget(config, &packet);
	addr_from_v4(&outer, to_be32(tunnel.remote_ipv4));
	details.peer_identity = tunnel.tunnel_id;
	reason = overlay_check(&packet, &outer, tunnel.tunnel_id);
	if (reason)
		return dropped_flow(skb, config, &packet, &details, reason);

	/* The inner frame has whatever MAC its sender knew. */
	packet_set_type(skb, PACKET_TO_US);
	to = endpoint_of(&packet.destination);
	if (!to) {
		node = node_of(&packet.destination);
		if (!node || !(node->flags & NODE_LOCAL))
			return dropped_flow(skb, config, &packet, &details, REASON_NO_ENDPOINT);
		reason = overlay_host_port(skb, config, &packet);
		if (reason)
			return dropped_flow(skb, config, &packet, &details, reason);
		to = endpoint_of(&packet.destination);
		if (!to)
			return overlay_to_host(skb, config, &packet);
		ingress.new_flags = CONNTRACK_TRANSLATED;
	}
	ingress.identity = tunnel.tunnel_id;
	ingress.endpoint = to->id;
	details.endpoint = to->id;
	reason = admit(skb, config, &packet, &ingress);
	if (reason == REASON_CONNECTION_REVOKED)
		return continue_reset(skb, &packet, RESET_BOTH, DIRECTION_INGRESS, reason, PLACE_OVERLAY);
	if (reason)
		return dropped(skb, reason, PLACE_OVERLAY);
	if ((ingress.flags & CONNTRACK_TRANSLATED) && ingress.opened == DIRECTION_EGRESS) {
		reason = translation_reply(skb, &packet, &unused);
		if (reason)
			return dropped_flow(skb, config, &packet, &details, reason);
		count(REASON_REPLY_TRANSLATED, PLACE_OVERLAY, packet.length);
	}
	return deliver_to_pod(skb, to, PLACE_OVERLAY);
}

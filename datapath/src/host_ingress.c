/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_ingress: packets that reach the node by its own devices.
 *
 * Hook      tcx ingress of the underlay device(s).
 * Contract  VXLAN from an address that is no node is dropped. A packet to a NodePort, hostPort, external or
 *           load-balancer address becomes one to a backend: on this node it goes on through the stack with its source
 *           kept; on another node it is sent through the overlay from this node's router address, so that the answer
 *           comes back here. Everything else is the host's and passes untouched.
 * Cost      VXLAN: one read and one hash look-up. Others: up to 3 hash look-ups.
 * Kernel    6.6.
 */
#include "forward.h"
#include "overlay.h"

/* Choose backend and source for a new connection. Returns 0 or a reason. */
static __always_inline int external_request(struct __sk_buff *skb, const struct config *config,
					    const struct packet *packet, const struct choice *choice,
					    struct translation *to)
{
	struct endpoint *local = endpoint_of(&choice->backend->address);
	struct node *node = node_of(&choice->backend->address);
	int here = local || (node && (node->flags & NODE_LOCAL));
	int keep = here || (choice->service->flags & SERVICE_KEEP_SOURCE);

	to->source = keep ? packet->source : config->router;
	to->source_port = packet->source_port;
	to->destination = choice->backend->address;
	to->destination_port = choice->backend->port;
	to->ifindex = keep ? 0 : config->overlay_ifindex;
	to->used = clock_coarse_ns();
	if (!keep && addr_is_zero(&config->router))
		return REASON_NOT_CONFIGURED;
	return translation_add(packet, to, !keep, skb->ifindex);
}

static __always_inline int external_forward(struct __sk_buff *skb, const struct config *config, struct packet *packet,
					    const struct translation *to, const struct event_details *details)
{
	struct cache_entry *cache;

	if (rewrite_tuple(skb, packet, to, TRANSLATION_REQUEST))
		return dropped(skb, REASON_REWRITE_FAILED, PLACE_HOST);
	count(REASON_SERVICE_TRANSLATED, PLACE_HOST, packet->length);
	if (!to->ifindex)
		return TC_PASS;
	cache = cache_of(&packet->destination);
	if (!cache || addr_is_zero(&cache->tunnel))
		return dropped_flow(skb, config, packet, details, REASON_NO_ENDPOINT);
	return deliver_to_node(skb, config, &cache->tunnel, IDENTITY_REMOTE_NODE, PLACE_HOST);
}

PROGRAM("tc")
int host_ingress(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	struct event_details details = {
		.direction = DIRECTION_INGRESS,
		.place = PLACE_HOST,
		.peer_identity = IDENTITY_WORLD,
	};
	struct affinity_key client = {};
	struct question ask = { .scope = SCOPE_EXTERNAL };
	struct translation *known, to;
	struct overlay_peek peek;
	struct choice choice;
	struct packet packet;
	struct node *node;
	int reason;

	if (!config || skb->protocol != to_be16(ETH_P_IP))
		return TC_PASS;
	if (overlay_seen(skb, config, &peek) && peek.ip.destination == config->node.words[3]) {
		addr_from_v4(&packet.source, peek.ip.source);
		if (node_of(&packet.source))
			return TC_PASS;
	}
	if (packet_parse(skb, &packet))
		return TC_PASS;
	node = node_of(&packet.destination);
	if (packet.protocol == PROTOCOL_UDP && packet.destination_port == config->overlay_port && node) {
		if (node_of(&packet.source))
			return TC_PASS;
		return dropped_flow(skb, config, &packet, &details, REASON_OVERLAY_NOT_NODE);
	}
	if ((node && !(node->flags & NODE_LOCAL)) || !protocol_has_ports(packet.protocol))
		return TC_PASS;

	known = translation_find(&packet, TRANSLATION_REQUEST);
	if (known) {
		known->used = clock_coarse_ns();
		to = *known;
		return external_forward(skb, config, &packet, &to, &details);
	}
	if (packet.kind == PACKET_ICMP_ERROR)
		return TC_PASS;
	client.client = packet.source;
	ask.address = &packet.destination;
	ask.port = packet.destination_port;
	ask.protocol = packet.protocol;
	ask.is_node = node != 0;
	ask.lot = random_u32();
	choice = service_choose(&ask, &client);
	if (!choice.service)
		return TC_PASS;
	if (!choice.backend) {
		event_emit(skb, config, &packet, &details, REASON_SERVICE_NO_BACKEND);
		count(REASON_SERVICE_NO_BACKEND, PLACE_HOST, skb->len);
		/* The stack has no listener there and refuses it as TCP or UDP should. */
		return choice.service->flags & SERVICE_DROP_IF_EMPTY ? TC_DROP : TC_PASS;
	}
	reason = external_request(skb, config, &packet, &choice, &to);
	if (reason)
		return dropped_flow(skb, config, &packet, &details, reason);
	return external_forward(skb, config, &packet, &to, &details);
}

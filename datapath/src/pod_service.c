/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * pod_service: packets from a pod to a service address.
 *
 * Hook      tail call from pod_egress (`continuations`, slot 1), so an ingress hook.
 * Contract  The sender has been checked. Sockets translate service addresses at connect() already; what comes here
 *           is from pods that opted out of that, or was made without sockets. The destination becomes a backend's,
 *           the same one for the whole connection; policy then judges the backend. A pod that reaches itself gets
 *           config.loopback as the source, since it would not take a packet from its own address.
 *           No such service or no backend: TCP is reset at once, all else dropped.
 * Cost      One hash look-up for known connections; two more and two inserts for a new one.
 * Kernel    6.6.
 */
#include "forward.h"
#include "sender.h"

static __always_inline int service_refuse(struct __sk_buff *skb, const struct config *config,
					  const struct packet *packet, const struct event_details *details, int reason)
{
	event_emit(skb, config, packet, details, reason);
	return continue_reset(skb, packet, RESET_REFUSE, DIRECTION_EGRESS, reason, PLACE_POD_EGRESS);
}

/* Choose a backend for a new connection. Returns 0 or a reason. */
static __always_inline int service_request(const struct config *config, const struct packet *packet,
					   struct translation *to)
{
	struct affinity_key client = { .client = packet->source };
	struct question ask = {
		.address = &packet->destination,
		.port = packet->destination_port,
		.protocol = packet->protocol,
		.scope = SCOPE_CLUSTER,
		.is_node = node_of(&packet->destination) != 0,
		.lot = random_u32(),
	};
	struct choice choice = service_choose(&ask, &client);

	if (!choice.service)
		return REASON_SERVICE_UNKNOWN;
	if (!choice.backend)
		return REASON_SERVICE_NO_BACKEND;
	to->source = packet->source;
	to->source_port = packet->source_port;
	to->destination = choice.backend->address;
	to->destination_port = choice.backend->port;
	to->ifindex = 0;
	to->used = clock_coarse_ns();
	if (addr_equal(&to->source, &to->destination))
		to->source = config->loopback;
	return translation_add(packet, to, 0, 0);
}

PROGRAM("tc")
int pod_service(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	struct event_details details = { .direction = DIRECTION_EGRESS, .place = PLACE_POD_EGRESS };
	struct translation *known, to;
	struct endpoint *from = 0;
	struct packet packet;
	struct target target;
	__u32 unused;
	int reason;

	if (!config)
		return dropped(skb, REASON_NOT_CONFIGURED, PLACE_POD_EGRESS);
	reason = packet_parse(skb, &packet);
	if (reason)
		return dropped(skb, reason, PLACE_POD_EGRESS);
	packet_forget(config, &packet);
	from = endpoint_of(&packet.sender);
	if (!from)
		return dropped(skb, REASON_SOURCE_SPOOFED, PLACE_POD_EGRESS);
	details.endpoint = from->id;

	if (addr_equal(&packet.destination, &config->loopback)) {
		/* The pod answers itself. */
		reason = translation_reply(skb, &packet, &unused);
		if (reason)
			return dropped_flow(skb, config, &packet, &details, reason);
		count(REASON_REPLY_TRANSLATED, PLACE_POD_EGRESS, packet.length);
		return deliver_to_pod(skb, from, PLACE_POD_EGRESS);
	}
	known = translation_find(&packet, TRANSLATION_REQUEST);
	if (known) {
		known->used = clock_coarse_ns();
		to = *known;
	} else {
		reason = service_request(config, &packet, &to);
		if (reason)
			return service_refuse(skb, config, &packet, &details, reason);
	}
	if (rewrite_tuple(skb, &packet, &to, TRANSLATION_REQUEST))
		return dropped(skb, REASON_REWRITE_FAILED, PLACE_POD_EGRESS);
	count(REASON_SERVICE_TRANSLATED, PLACE_POD_EGRESS, packet.length);
	if (addr_equal(&packet.source, &config->loopback))
		return deliver_to_pod(skb, from, PLACE_POD_EGRESS);

	reason = target_find(config, &packet.destination, &target);
	details.peer_identity = target.identity;
	if (reason)
		return dropped_flow(skb, config, &packet, &details, reason);
	return forward_from_pod(skb, config, &packet, from, &target, CONNTRACK_TRANSLATED);
}

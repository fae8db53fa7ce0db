/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flow events: what the agent shows as flows. One for a connection opened, refused, revoked or closed, and one for a
 * packet dropped; none for a packet that merely passes.
 *
 * Bounded: each CPU has a token bucket (config.events_per_second, burst of one second); what exceeds it is counted
 * in event_budget.lost. The reader is not woken for an event: it polls, and is woken early only when
 * config.events_wakeup bytes wait, so that the ring does not overflow.
 */
#ifndef UNDERPASS_EVENTS_H
#define UNDERPASS_EVENTS_H

#include "configuration.h"
#include "packet.h"

/* One event may go out: take a token. */
static __always_inline int event_allowed(const struct config *config, __u64 now)
{
	__u32 zero = 0;
	struct event_budget *budget = map_lookup(MAP(event_budget), &zero);

	if (!budget || !config->events_per_second)
		return 0;
	if (now - budget->refilled >= SECOND_NS) {
		budget->refilled = now;
		budget->tokens = config->events_per_second;
	}
	if (budget->tokens > config->events_per_second)
		budget->tokens = config->events_per_second;
	if (!budget->tokens) {
		budget->lost++;
		return 0;
	}
	budget->tokens--;
	return 1;
}

struct event_details {
	__u32 peer_identity;
	__u32 rule;
	__u32 rule_set;
	__u16 endpoint;
	__u8 direction;
	__u8 place;
};

static __always_inline void event_emit(struct __sk_buff *skb, const struct config *config,
				       const struct packet *packet, const struct event_details *details, __u8 reason)
{
	__u64 now = clock_ns();
	struct flow_event *event;
	int egress = details->direction == DIRECTION_EGRESS;

	if (!event_allowed(config, now))
		return;
	event = ring_reserve(MAP(events), sizeof(*event), 0);
	if (!event)
		return;
	event->time = now;
	event->local = egress ? packet->source : packet->destination;
	event->peer = egress ? packet->destination : packet->source;
	event->local_port = egress ? packet->source_port : packet->destination_port;
	event->peer_port = egress ? packet->destination_port : packet->source_port;
	event->peer_identity = details->peer_identity;
	event->rule = details->rule;
	event->rule_set = details->rule_set;
	event->ifindex = skb->ifindex;
	event->length = packet->length;
	event->endpoint = details->endpoint;
	event->reason = reason;
	event->direction = details->direction;
	event->protocol = packet->protocol;
	event->tcp_flags = packet->tcp_flags;
	event->place = details->place;
	event->_pad[0] = 0;
	event->messages = 0;
	event->bytes = 0;
	event->latency = 0;
	ring_submit(event, ring_query(MAP(events), BPF_RB_AVAIL_DATA) >= config->events_wakeup ?
				   BPF_RB_FORCE_WAKEUP :
				   BPF_RB_NO_WAKEUP);
}

#endif

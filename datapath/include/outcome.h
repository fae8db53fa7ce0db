/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a tc program ends: counted, and for drops outside policy also reported as an event. */
#ifndef UNDERPASS_OUTCOME_H
#define UNDERPASS_OUTCOME_H

#include "events.h"
#include "metrics.h"

/* Passed on: counts, returns what the program is to return. */
static __always_inline int passed(struct __sk_buff *skb, __u32 reason, __u32 place, int action)
{
	count(reason, place, skb->len);
	return action;
}

/* Dropped before anything is known of the packet. */
static __always_inline int dropped(struct __sk_buff *skb, __u32 reason, __u32 place)
{
	count(reason, place, skb->len);
	return TC_DROP;
}

/* Dropped, and shown as a flow. Policy's own drops are reported by admit() already. */
static __always_inline int dropped_flow(struct __sk_buff *skb, const struct config *config,
					const struct packet *packet, const struct event_details *details, __u32 reason)
{
	event_emit(skb, config, packet, details, reason);
	return dropped(skb, reason, details->place);
}

#endif

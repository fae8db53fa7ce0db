/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Going on in another program (tail call through `continuations`): keeps rare work out of the programs that every
 * packet runs. What the next program must know travels in skb->cb, set right before the call.
 */
#ifndef UNDERPASS_CONTINUE_H
#define UNDERPASS_CONTINUE_H

#include "outcome.h"

enum reset_mode {
	RESET_BOTH = 0, /* both ends of a revoked connection */
	RESET_REFUSE = 1, /* the sender of a SYN that nobody will answer */
};

/*
 * Answer a packet with resets. direction: of the packet, seen from the local endpoint. Packets that no reset can
 * answer are dropped for `reason`, as is the packet itself in every case.
 */
static __always_inline int continue_reset(struct __sk_buff *skb, const struct packet *packet, __u32 mode,
					  __u8 direction, __u32 reason, __u32 place)
{
	if (packet->protocol == PROTOCOL_TCP && packet->kind == PACKET_WHOLE && !packet_is_reset(packet)) {
		skb->cb[0] = mode;
		skb->cb[1] = direction;
		skb->cb[2] = reason;
		skb->cb[3] = place;
		tail_call(skb, MAP(continuations), CONTINUE_RESET);
		reason = REASON_PROGRAM_MISSING;
	}
	return dropped(skb, reason, place);
}

static __always_inline int continue_service(struct __sk_buff *skb, __u32 place)
{
	tail_call(skb, MAP(continuations), CONTINUE_SERVICE);
	return dropped(skb, REASON_PROGRAM_MISSING, place);
}

#endif

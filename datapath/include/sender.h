/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Is a frame from a pod's veth really that pod's? Source address and source MAC must be those of the endpoint behind
 * the very device. An ICMP error is checked by who sent it, and by the connection it is about being the pod's.
 */
#ifndef UNDERPASS_SENDER_H
#define UNDERPASS_SENDER_H

#include "identity.h"
#include "packet.h"

static __always_inline int mac_equal(const __u8 *a, const __u8 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3] && a[4] == b[4] && a[5] == b[5];
}

/* Returns 0 and the endpoint, or a reason. */
static __always_inline int sender_check(struct __sk_buff *skb, const struct packet *packet, struct endpoint **sender)
{
	struct endpoint *endpoint = endpoint_of(&packet->sender);
	struct ethernet_header frame;

	if (!endpoint || endpoint->ifindex != skb->ifindex)
		return REASON_SOURCE_SPOOFED;
	if (packet->kind == PACKET_ICMP_ERROR && !addr_equal(&packet->source, &packet->sender))
		return REASON_SOURCE_SPOOFED;
	if (packet_read(skb, 0, &frame, sizeof(frame)))
		return REASON_MALFORMED;
	if (!mac_equal(frame.source, endpoint->mac))
		return REASON_MAC_SPOOFED;
	*sender = endpoint;
	return 0;
}

#endif

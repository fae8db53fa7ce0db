/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The overlay's own packets on the node's devices: most of what these carry, so they are known by one read, before
 * anything is parsed or looked up.
 */
#ifndef UNDERPASS_OVERLAY_H
#define UNDERPASS_OVERLAY_H

#include "packet.h"

struct overlay_peek {
	struct ipv4_header ip;
	__be16 source_port;
	__be16 destination_port;
} __attribute__((packed));

/*
 * A plain VXLAN packet (whole, no IP options)? One that only might be is not: packet_parse treats it.
 * `skb->protocol` must be IPv4.
 */
static __always_inline int overlay_seen(struct __sk_buff *skb, const struct config *config, struct overlay_peek *peek)
{
	return !packet_read(skb, L3_OFFSET, peek, sizeof(*peek)) && peek->ip.version_length == 0x45 &&
	       peek->ip.protocol == PROTOCOL_UDP && peek->destination_port == config->overlay_port &&
	       !(peek->ip.fragment & to_be16(IP_MORE_FRAGMENTS | IP_OFFSET_MASK));
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Changing the addresses and ports of a packet, with its checksums.
 *
 * The kernel's incremental helpers are used because a packet's checksum may be complete, partial (to be finished by
 * the device) or absent (UDP 0), and only they treat all three right. Later fragments carry no ports and no checksum.
 * ICMP has no pseudo header: addresses alone change.
 * An ICMP error quotes the packet that it is about, and the quoted addresses and ports change with the error's own,
 * or its receiver would not know its own packet.
 * SCTP: addresses only; its CRC covers the ports, and a change of them fails.
 */
#ifndef UNDERPASS_REWRITE_H
#define UNDERPASS_REWRITE_H

#include "helpers.h"
#include "packet.h"

#define IP_CHECKSUM_OFFSET (L3_OFFSET + 10)
#define IP_SOURCE_OFFSET (L3_OFFSET + 12)
#define IP_DESTINATION_OFFSET (L3_OFFSET + 16)

static __always_inline int rewrite_checksum_offset(const struct packet *packet, __u64 *flags)
{
	*flags = 0;
	if (packet->kind == PACKET_LATER_FRAGMENT)
		return 0;
	if (packet->protocol == PROTOCOL_TCP)
		return packet->l4 + 16;
	if (packet->protocol == PROTOCOL_UDP) {
		*flags = BPF_F_MARK_MANGLED_0;
		return packet->l4 + 6;
	}
	return 0;
}

static __always_inline int rewrite_address(struct __sk_buff *skb, const struct packet *packet, __u32 offset, __be32 from,
					   __be32 to)
{
	__u64 flags;
	int checksum = rewrite_checksum_offset(packet, &flags);

	if (from == to)
		return 0;
	if (checksum && checksum_l4_replace(skb, checksum, from, to, flags | BPF_F_PSEUDO_HDR | sizeof(to)))
		return -1;
	if (checksum_l3_replace(skb, IP_CHECKSUM_OFFSET, from, to, sizeof(to)))
		return -1;
	return packet_write(skb, offset, &to, sizeof(to), 0);
}

static __always_inline int rewrite_port(struct __sk_buff *skb, const struct packet *packet, __u32 offset, __be16 from,
					__be16 to)
{
	__u64 flags;
	int checksum = rewrite_checksum_offset(packet, &flags);

	if (from == to || packet->kind == PACKET_LATER_FRAGMENT)
		return 0;
	if (!checksum)
		return -1;
	if (checksum_l4_replace(skb, checksum, from, to, flags | sizeof(to)))
		return -1;
	return packet_write(skb, packet->l4 + offset, &to, sizeof(to), 0);
}

/* One of the addresses that an ICMP error quotes. The quoted header's checksum changes by as much as the address, so
 * the ICMP checksum over both stays right. */
static __always_inline int rewrite_quoted_address(struct __sk_buff *skb, const struct packet *packet, __u32 offset,
						  __be32 from, __be32 to)
{
	__u32 quoted = packet->l4 + sizeof(struct icmp_header);

	return checksum_l3_replace(skb, quoted + 10, from, to, sizeof(to)) ||
	       packet_write(skb, quoted + offset, &to, sizeof(to), 0);
}

static __always_inline int rewrite_quoted_port(struct __sk_buff *skb, const struct packet *packet, __u32 offset,
					       __be16 from, __be16 to)
{
	if (from == to || !protocol_has_ports(packet->protocol))
		return 0;
	return checksum_l4_replace(skb, packet->l4 + 2, from, to, sizeof(to)) ||
	       packet_write(skb, packet->embedded_l4 + offset, &to, sizeof(to), 0);
}

/* An ICMP error about a translated connection: the tuple is the quoted packet's, turned round. */
static __always_inline int rewrite_error(struct __sk_buff *skb, struct packet *packet, const struct translation *to,
					 int kind)
{
	__be32 from = packet->sender.words[3], sender = from;
	struct packet outer = *packet;

	/* Its sender is the connection's far end, or a router. A router stays, unless requests get another source: then
	 * only from that source will the way to the backend be open. */
	if (from == packet->source.words[3] ||
	    (kind == TRANSLATION_REQUEST && to->source.words[3] != packet->source.words[3]))
		sender = to->source.words[3];
	outer.protocol = PROTOCOL_ICMP;
	return rewrite_address(skb, &outer, IP_SOURCE_OFFSET, from, sender) ||
	       rewrite_address(skb, &outer, IP_DESTINATION_OFFSET, packet->destination.words[3],
			       to->destination.words[3]) ||
	       rewrite_quoted_address(skb, packet, 12, packet->destination.words[3], to->destination.words[3]) ||
	       rewrite_quoted_address(skb, packet, 16, packet->source.words[3], to->source.words[3]) ||
	       rewrite_quoted_port(skb, packet, 0, packet->destination_port, to->destination_port) ||
	       rewrite_quoted_port(skb, packet, 2, packet->source_port, to->source_port);
}

/* Give the packet the tuple `to`; `packet` follows. Returns 0, or non-zero when the kernel refused. */
static __always_inline int rewrite_tuple(struct __sk_buff *skb, struct packet *packet, const struct translation *to,
					 int kind)
{
	if (packet->kind == PACKET_ICMP_ERROR) {
		if (rewrite_error(skb, packet, to, kind))
			return -1;
	} else if (rewrite_address(skb, packet, IP_SOURCE_OFFSET, packet->source.words[3], to->source.words[3]) ||
	    rewrite_address(skb, packet, IP_DESTINATION_OFFSET, packet->destination.words[3], to->destination.words[3]) ||
	    rewrite_port(skb, packet, 0, packet->source_port, to->source_port) ||
	    rewrite_port(skb, packet, 2, packet->destination_port, to->destination_port)) {
		return -1;
	}
	packet->source = to->source;
	packet->sender = to->source;
	packet->destination = to->destination;
	packet->source_port = to->source_port;
	packet->destination_port = to->destination_port;
	return 0;
}

#endif

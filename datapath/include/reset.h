/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Turning a TCP packet into a reset that its receiver, or its sender, must believe.
 *
 * A receiver acts on a reset only when the sequence number is exactly the next it expects (RFC 5961). The packet at
 * hand has both numbers: its own sequence number for the receiver, its acknowledgment for the sender.
 */
#ifndef UNDERPASS_RESET_H
#define UNDERPASS_RESET_H

#include "checksum.h"
#include "deliver.h"
#include "packet.h"

#define RESET_SIZE ((__u32)(sizeof(struct ethernet_header) + sizeof(struct ipv4_header) + sizeof(struct tcp_header)))

struct reset {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__be32 sequence;
	__be32 acknowledgment;
	__u8 flags;
};

/*
 * Cut the packet to the size of a reset. Returns 1 when its checksum is one that the device finishes (then the field
 * must hold the sum of the pseudo header), 0 when it must be complete, negative on failure.
 *
 * Programs cannot ask which of the two it is. But the kernel refuses to cut into the checksum field of an unfinished
 * one, so a cut to 4 bytes less than a reset tells.
 */
static __always_inline int reset_cut(struct __sk_buff *skb)
{
	int unfinished = packet_resize(skb, RESET_SIZE - 4, 0) != 0;

	return packet_resize(skb, RESET_SIZE, 0) ? -1 : unfinished;
}

/* Write the reset into a packet of RESET_SIZE bytes; to_pod: which way the frame faces at the pod's veth. */
static __always_inline int reset_write(struct __sk_buff *skb, const struct reset *reset, const struct endpoint *pod,
				       int to_pod, int unfinished)
{
	struct ethernet_header frame;
	struct ipv4_header ip = {
		.version_length = 0x45,
		.total_length = to_be16(sizeof(ip) + sizeof(struct tcp_header)),
		.fragment = to_be16(0x4000),
		.ttl = 64,
		.protocol = PROTOCOL_TCP,
		.source = reset->source,
		.destination = reset->destination,
	};
	struct tcp_header tcp = {
		.source_port = reset->source_port,
		.destination_port = reset->destination_port,
		.sequence = reset->sequence,
		.acknowledgment = reset->acknowledgment,
		.data_offset = (sizeof(tcp) / 4) << 4,
		.flags = reset->flags,
	};
	struct {
		__be32 source;
		__be32 destination;
		__be16 protocol;
		__be16 length;
	} pseudo = {
		.source = reset->source,
		.destination = reset->destination,
		.protocol = to_be16(PROTOCOL_TCP),
		.length = to_be16(sizeof(tcp)),
	};
	__u32 sum = checksum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0);

	ip.checksum = checksum_ipv4(&ip);
	if (unfinished)
		tcp.checksum = checksum_fold(sum);
	else
		tcp.checksum = ~checksum_fold(checksum_diff(0, 0, (void *)&tcp, sizeof(tcp), sum));
	__builtin_memcpy(frame.source, to_pod ? pod->host_mac : pod->mac, 6);
	__builtin_memcpy(frame.destination, to_pod ? pod->mac : pod->host_mac, 6);
	frame.protocol = to_be16(ETH_P_IP);
	return packet_write(skb, 0, &frame, sizeof(frame), 0) ||
	       packet_write(skb, L3_OFFSET, &ip, sizeof(ip), BPF_F_INVALIDATE_HASH) ||
	       packet_write(skb, L3_OFFSET + sizeof(ip), &tcp, sizeof(tcp), 0);
}

#endif

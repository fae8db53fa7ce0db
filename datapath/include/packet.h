/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reading a packet: Ethernet, ARP, IPv4, TCP, UDP, SCTP, ICMP.
 *
 * Headers are copied to the stack (packet_read) and not read in place: a helper call costs some nanoseconds, but
 * works for packets whose headers are not linear, and no later helper invalidates anything.
 */
#ifndef UNDERPASS_PACKET_H
#define UNDERPASS_PACKET_H

#include "address.h"
#include "configuration.h"
#include "fragments.h"
#include "helpers.h"
#include "reasons.h"

#define L3_OFFSET ((__u32)sizeof(struct ethernet_header))

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

#define ICMP_ECHO_REPLY_TYPE 0
#define ICMP_UNREACHABLE_TYPE 3
#define ICMP_ECHO_TYPE 8
#define ICMP_TIME_EXCEEDED_TYPE 11
#define ICMP_PARAMETER_TYPE 12

#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_SCTP 132

#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET_MASK 0x1fff

struct ethernet_header {
	__u8 destination[6];
	__u8 source[6];
	__be16 protocol;
} __attribute__((packed));

struct ipv4_header {
	__u8 version_length;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__be32 source;
	__be32 destination;
};

struct tcp_header {
	__be16 source_port;
	__be16 destination_port;
	__be32 sequence;
	__be32 acknowledgment;
	__u8 data_offset; /* upper four bits */
	__u8 flags;
	__be16 window;
	__u16 checksum;
	__be16 urgent;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be16 id;
	__be16 sequence;
};

enum packet_kind {
	PACKET_WHOLE = 0,
	PACKET_FIRST_FRAGMENT = 1,
	PACKET_LATER_FRAGMENT = 2,
	PACKET_ICMP_ERROR = 3,
};

/*
 * What the programs know of a packet.
 *
 * source, destination, ports, protocol name the connection it belongs to. For an ICMP error that is the connection
 * it is about, turned round (as if its far end had answered), and `sender` is the address that sent the error.
 * ICMP echo: who asks has the id as its port, the other side 0.
 */
struct packet {
	struct addr source;
	struct addr destination;
	struct addr sender;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 kind;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 tos;
	__u32 l4;
	__u32 embedded_l4; /* of an ICMP error: offset of the ports it quotes */
	__u32 length;
};

static __always_inline int packet_is_syn(const struct packet *packet)
{
	return packet->protocol == PROTOCOL_TCP && (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline int packet_is_reset(const struct packet *packet)
{
	return packet->protocol == PROTOCOL_TCP && (packet->tcp_flags & TCP_RST);
}

static __always_inline int protocol_has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

/* The connection that an ICMP error is about. */
static __always_inline int packet_read_embedded(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv4_header inner;
	__be16 ports[2] = { 0, 0 };
	__u32 offset = packet->l4 + sizeof(struct icmp_header);
	__u32 header;

	if (packet_read(skb, offset, &inner, sizeof(inner)))
		return REASON_MALFORMED;
	header = (inner.version_length & 0xf) * 4;
	if (inner.version_length >> 4 != 4 || header < sizeof(inner))
		return REASON_MALFORMED;
	/* The error must go to whoever sent what it is about. */
	if (inner.source != packet->destination.words[3])
		return REASON_MALFORMED;
	packet->kind = PACKET_ICMP_ERROR;
	packet->protocol = inner.protocol;
	addr_from_v4(&packet->source, inner.destination);
	addr_from_v4(&packet->destination, inner.source);
	if (inner.protocol == PROTOCOL_ICMP) {
		struct icmp_header icmp;

		if (packet_read(skb, offset + header, &icmp, sizeof(icmp)))
			return REASON_MALFORMED;
		if (icmp.type == ICMP_ECHO_TYPE)
			ports[0] = icmp.id;
		else if (icmp.type == ICMP_ECHO_REPLY_TYPE)
			ports[1] = icmp.id;
	} else if (protocol_has_ports(inner.protocol)) {
		if (packet_read(skb, offset + header, ports, sizeof(ports)))
			return REASON_MALFORMED;
	}
	packet->source_port = ports[1];
	packet->destination_port = ports[0];
	packet->embedded_l4 = offset + header;
	return 0;
}

static __always_inline int packet_read_icmp(struct __sk_buff *skb, struct packet *packet)
{
	struct icmp_header icmp;

	if (packet_read(skb, packet->l4, &icmp, sizeof(icmp)))
		return REASON_MALFORMED;
	packet->icmp_type = icmp.type;
	switch (icmp.type) {
	case ICMP_ECHO_TYPE:
		packet->source_port = icmp.id;
		return 0;
	case ICMP_ECHO_REPLY_TYPE:
		packet->destination_port = icmp.id;
		return 0;
	case ICMP_UNREACHABLE_TYPE:
	case ICMP_TIME_EXCEEDED_TYPE:
	case ICMP_PARAMETER_TYPE:
		return packet_read_embedded(skb, packet);
	default:
		return 0;
	}
}

static __always_inline int packet_read_ports(struct __sk_buff *skb, struct packet *packet)
{
	if (packet->protocol == PROTOCOL_TCP) {
		struct tcp_header tcp;

		if (packet_read(skb, packet->l4, &tcp, sizeof(tcp)))
			return REASON_MALFORMED;
		packet->source_port = tcp.source_port;
		packet->destination_port = tcp.destination_port;
		packet->tcp_flags = tcp.flags;
	} else {
		__be16 ports[2];

		if (packet_read(skb, packet->l4, ports, sizeof(ports)))
			return REASON_MALFORMED;
		packet->source_port = ports[0];
		packet->destination_port = ports[1];
	}
	return 0;
}

/*
 * Fill `packet` from the IPv4 packet in skb. Returns 0 or a reason to drop it.
 * `skb->protocol` must be IPv4.
 */
static __always_inline int packet_parse(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv4_header ip;
	__u32 header, offset, reason = 0;

	if (packet_read(skb, L3_OFFSET, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	header = (ip.version_length & 0xf) * 4;
	if (ip.version_length >> 4 != 4 || header < sizeof(ip))
		return REASON_MALFORMED;
	offset = from_be16(ip.fragment);

	addr_from_v4(&packet->source, ip.source);
	addr_from_v4(&packet->destination, ip.destination);
	packet->sender = packet->source;
	packet->source_port = 0;
	packet->destination_port = 0;
	packet->protocol = ip.protocol;
	packet->tos = ip.tos;
	packet->tcp_flags = 0;
	packet->icmp_type = 0;
	packet->l4 = L3_OFFSET + header;
	packet->embedded_l4 = 0;
	packet->length = skb->len;
	packet->kind = PACKET_WHOLE;

	if (offset & IP_OFFSET_MASK) {
		packet->kind = PACKET_LATER_FRAGMENT;
		return fragment_recall(&packet->source, &packet->destination, ip.id, ip.protocol, &packet->source_port,
				       &packet->destination_port);
	}
	if (ip.protocol == PROTOCOL_ICMP)
		reason = packet_read_icmp(skb, packet);
	else if (protocol_has_ports(ip.protocol))
		reason = packet_read_ports(skb, packet);
	if (!reason && (offset & IP_MORE_FRAGMENTS)) {
		/* An error message in pieces would name a connection that its later pieces do not. */
		if (packet->kind == PACKET_ICMP_ERROR)
			return REASON_MALFORMED;
		packet->kind = PACKET_FIRST_FRAGMENT;
		fragment_remember(&packet->source, &packet->destination, ip.id, ip.protocol, packet->source_port,
				  packet->destination_port);
	}
	return reason;
}

/* Forget which kind of packet it is (see FORGET), once it has been read. */
static __always_inline void packet_forget(const struct config *config, struct packet *packet)
{
	FORGET(config, packet->kind);
	FORGET(config, packet->protocol);
	FORGET(config, packet->icmp_type);
	FORGET(config, packet->tcp_flags);
}

#endif

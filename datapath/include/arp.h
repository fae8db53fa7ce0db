/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ARP from a pod. A pod has one neighbour, its gateway (a link-local address that every pod shares); the program
 * answers for it with the MAC of the host's end. Everything else is refused: a pod neither asks for others nor
 * answers for anybody. The host's side has a permanent neighbour entry and never asks.
 */
#ifndef UNDERPASS_ARP_H
#define UNDERPASS_ARP_H

#include "outcome.h"
#include "sender.h"

#define ARP_REQUEST 1
#define ARP_REPLY 2

struct arp_message {
	struct ethernet_header ethernet;
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

static __always_inline int arp_answer(struct __sk_buff *skb, const struct config *config)
{
	struct arp_message message;
	struct endpoint *endpoint;
	struct addr sender;
	__be32 asked;

	if (packet_read(skb, 0, &message, sizeof(message)))
		return dropped(skb, REASON_MALFORMED, PLACE_POD_EGRESS);
	addr_from_v4(&sender, message.sender);
	endpoint = endpoint_of(&sender);
	if (!endpoint || endpoint->ifindex != skb->ifindex)
		return dropped(skb, REASON_SOURCE_SPOOFED, PLACE_POD_EGRESS);
	if (!mac_equal(message.ethernet.source, endpoint->mac) || !mac_equal(message.sender_mac, endpoint->mac))
		return dropped(skb, REASON_MAC_SPOOFED, PLACE_POD_EGRESS);
	asked = message.target;
	if (message.hardware != to_be16(1) || message.protocol != to_be16(ETH_P_IP) || message.hardware_length != 6 ||
	    message.protocol_length != 4 || message.operation != to_be16(ARP_REQUEST) ||
	    asked != config->gateway.words[3])
		return dropped(skb, REASON_ARP_REFUSED, PLACE_POD_EGRESS);

	message.operation = to_be16(ARP_REPLY);
	message.target = message.sender;
	message.sender = asked;
	__builtin_memcpy(message.ethernet.destination, endpoint->mac, 6);
	__builtin_memcpy(message.ethernet.source, endpoint->host_mac, 6);
	__builtin_memcpy(message.target_mac, endpoint->mac, 6);
	__builtin_memcpy(message.sender_mac, endpoint->host_mac, 6);
	if (packet_write(skb, 0, &message, sizeof(message), 0))
		return dropped(skb, REASON_REWRITE_FAILED, PLACE_POD_EGRESS);
	return passed(skb, REASON_ARP_ANSWERED, PLACE_POD_EGRESS, redirect(skb->ifindex, 0));
}

#endif

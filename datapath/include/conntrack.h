/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connection tracking: remembers what policy has allowed, so that replies pass and later packets cost one look-up.
 *
 * One entry for a connection and endpoint, whichever side opened it: the key says local and peer, not source and
 * destination. The endpoint's id is part of the key, so a pod that gets the address of a dead one never inherits
 * its connections.
 *
 * Where the table is full the kernel evicts the entry used least recently. A connection whose entry is gone is judged
 * again at its next packet, in that packet's direction: what policy allows goes on, all else is dropped. So eviction
 * fails closed.
 *
 * Concurrency: entries are updated without a lock; two CPUs may lose a count to each other, never a verdict.
 */
#ifndef UNDERPASS_CONNTRACK_H
#define UNDERPASS_CONNTRACK_H

#include "packet.h"

static __always_inline void conntrack_key(struct flow_key *key, const struct packet *packet, __u16 endpoint,
					  __u8 direction)
{
	int egress = direction == DIRECTION_EGRESS;

	key->local = egress ? packet->source : packet->destination;
	key->peer = egress ? packet->destination : packet->source;
	key->local_port = egress ? packet->source_port : packet->destination_port;
	key->peer_port = egress ? packet->destination_port : packet->source_port;
	key->protocol = packet->protocol;
	key->_pad[0] = 0;
	key->endpoint = endpoint;
}

static __always_inline __u64 conntrack_timeout(const struct config *config, __u8 protocol, __u16 flags)
{
	__u64 seconds;

	if (protocol == PROTOCOL_TCP) {
		if ((flags & CONNTRACK_RESET) ||
		    (flags & (CONNTRACK_LOCAL_FIN | CONNTRACK_PEER_FIN)) == (CONNTRACK_LOCAL_FIN | CONNTRACK_PEER_FIN))
			seconds = config->close_timeout;
		else if (flags & CONNTRACK_SEEN_REPLY)
			seconds = config->tcp_timeout;
		else
			seconds = config->syn_timeout;
	} else if (protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP) {
		seconds = config->datagram_timeout;
	} else {
		seconds = config->other_timeout;
	}
	return seconds * SECOND_NS;
}

/* Which flags a packet adds to its connection. */
static __always_inline __u16 conntrack_progress(const struct packet *packet, __u8 direction, __u8 opened)
{
	__u16 flags = 0;

	if (direction != opened)
		flags |= CONNTRACK_SEEN_REPLY;
	if (packet->protocol != PROTOCOL_TCP)
		return flags;
	if (packet->tcp_flags & TCP_RST)
		flags |= CONNTRACK_RESET;
	if (packet->tcp_flags & TCP_FIN)
		flags |= direction == DIRECTION_EGRESS ? CONNTRACK_LOCAL_FIN : CONNTRACK_PEER_FIN;
	return flags;
}

static __always_inline int conntrack_is_closed(__u16 flags)
{
	return (flags & CONNTRACK_RESET) || ((flags & CONNTRACK_LOCAL_FIN) && (flags & CONNTRACK_PEER_FIN));
}

/* Note a packet in its entry. Returns 1 when this packet closed the connection. */
static __always_inline int conntrack_touch(const struct config *config, struct conntrack_entry *entry,
					   const struct packet *packet, __u8 direction, __u64 now)
{
	__u16 before = entry->flags;
	__u16 flags = before | conntrack_progress(packet, direction, entry->direction);

	if (flags != before)
		entry->flags = flags;
	entry->expires = now + conntrack_timeout(config, packet->protocol, flags);
	if (direction == DIRECTION_EGRESS) {
		entry->tx_packets++;
		entry->tx_bytes += packet->length;
	} else {
		entry->rx_packets++;
		entry->rx_bytes += packet->length;
	}
	return conntrack_is_closed(flags) && !conntrack_is_closed(before);
}

#endif

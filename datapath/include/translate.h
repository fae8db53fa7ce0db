/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Service translation on packets, for clients whose sockets are not translated: from outside the cluster, and pods
 * that opted out. Two entries in `translations` per connection: how a request is rewritten, how a reply is.
 *
 * Requests of one connection go to one backend for as long as the entry lives. A SYN on a connection that has an
 * entry keeps its backend (it may be a retransmission).
 */
#ifndef UNDERPASS_TRANSLATE_H
#define UNDERPASS_TRANSLATE_H

#include "helpers.h"
#include "maps.h"
#include "packet.h"
#include "rewrite.h"
#include "services.h"

static __always_inline struct translation *translation_find(const struct packet *packet, __u8 kind)
{
	struct translation_key key = {
		.source = packet->source,
		.destination = packet->destination,
		.source_port = packet->source_port,
		.destination_port = packet->destination_port,
		.protocol = packet->protocol,
		.kind = kind,
	};

	return map_lookup(MAP(translations), &key);
}

/* Rewrite a reply, if its translation is known. Returns 0 or a reason. */
static __always_inline int translation_reply(struct __sk_buff *skb, struct packet *packet, __u32 *ifindex)
{
	struct translation *found = translation_find(packet, TRANSLATION_REPLY);

	if (!found)
		return REASON_TRANSLATION_MISSING;
	found->used = clock_coarse_ns();
	*ifindex = found->ifindex;
	return rewrite_tuple(skb, packet, found, TRANSLATION_REPLY) ? REASON_REWRITE_FAILED : 0;
}

/* Will the answer to this (already rewritten) request have to be rewritten? */
static __always_inline int translation_replies_to(const struct packet *packet)
{
	struct translation_key key = {
		.source = packet->destination,
		.destination = packet->source,
		.source_port = packet->destination_port,
		.destination_port = packet->source_port,
		.protocol = packet->protocol,
		.kind = TRANSLATION_REPLY,
	};

	return map_lookup(MAP(translations), &key) != 0;
}

#define TRANSLATION_PORT_FIRST 32768
#define TRANSLATION_PORTS 28000
#define TRANSLATION_TRIES 16

/*
 * Remember how requests and replies of this packet's connection are rewritten. `to` is the request's new tuple; with
 * `choose_port` its source port is chosen here so that no two connections share a reply. Returns 0 or a reason.
 */
static __always_inline int translation_add(const struct packet *packet, struct translation *to, int choose_port,
					   __u32 ifindex)
{
	struct translation_key key = {
		.source = packet->source,
		.destination = packet->destination,
		.source_port = packet->source_port,
		.destination_port = packet->destination_port,
		.protocol = packet->protocol,
		.kind = TRANSLATION_REQUEST,
	};
	struct translation_key reply = {
		.source = to->destination,
		.destination = to->source,
		.source_port = to->destination_port,
		.destination_port = to->source_port,
		.protocol = packet->protocol,
		.kind = TRANSLATION_REPLY,
	};
	struct translation back = {
		.source = packet->destination,
		.destination = packet->source,
		.source_port = packet->destination_port,
		.destination_port = packet->source_port,
		.ifindex = ifindex,
		.used = to->used,
	};
	int i, failed = 1;

	if (choose_port) {
#pragma unroll
		for (i = 0; i < TRANSLATION_TRIES; i++) {
			if (!failed)
				continue;
			reply.destination_port = to_be16(TRANSLATION_PORT_FIRST + random_u32() % TRANSLATION_PORTS);
			failed = map_update(MAP(translations), &reply, &back, BPF_NOEXIST) != 0;
		}
		to->source_port = reply.destination_port;
	} else {
		failed = map_update(MAP(translations), &reply, &back, BPF_ANY) != 0;
	}
	if (failed || map_update(MAP(translations), &key, to, BPF_ANY))
		return REASON_TRANSLATION_FULL;
	return 0;
}

#endif

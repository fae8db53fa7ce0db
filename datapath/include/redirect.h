/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Socket redirect: what a sender may do with its next message.
 *
 * A `stream` is one direction of an accelerated connection. What is unread is known exactly: bytes redirected (counted
 * here) plus bytes left to TCP (the socket's own write sequence, so that bytes which never passed here count too: a send
 * that began before the connection was there, what a cork holds back) less bytes read (counted at the reader, see
 * receive_count.c). By that
 *   - a stopped reader stops its sender: beyond the budget bytes go by TCP, which blocks;
 *   - order holds: a message is redirected only when no byte left to TCP is unread.
 *
 * Policy: tc has judged the connection, and the verdict holds while the policy revisions of both endpoints stand
 * still. When one has moved both directions of policy are judged again here. No longer allowed: the message goes by TCP,
 * where tc resets both ends.
 */
#ifndef UNDERPASS_REDIRECT_H
#define UNDERPASS_REDIRECT_H

#include "configuration.h"
#include "events.h"
#include "identity.h"
#include "metrics.h"
#include "packet.h"
#include "policy.h"

#define BUDGET_UNIT 1024
#define LATENCY_SAMPLE 16 /* one message in so many is timed; a power of two */
#define REFRESH_NS (60 * SECOND_NS)

static __always_inline void socket_key_of(struct socket_key *key, const struct socket_state *state, __u32 side)
{
	key->cookie = state->cookie;
	key->generation = state->generation;
	key->side = side;
}

static __always_inline void redirect_flow_key(struct flow_key *key, const struct stream *stream, int of_client)
{
	key->local = of_client ? stream->client : stream->server;
	key->peer = of_client ? stream->server : stream->client;
	key->local_port = of_client ? stream->client_port : stream->server_port;
	key->peer_port = of_client ? stream->server_port : stream->client_port;
	key->protocol = PROTOCOL_TCP;
	key->_pad[0] = 0;
	key->endpoint = of_client ? stream->client_endpoint : stream->server_endpoint;
}

/*
 * May these two pods talk, and is an address and a port all that policy asks for? Inside one pod nobody asks. The
 * revisions are read before the policy: a change in between is seen at the next message.
 */
static __always_inline int redirect_judge(struct stream *stream)
{
	__u32 client_id = stream->client_endpoint, server_id = stream->server_endpoint;
	__u64 client_revision = policy_revision(client_id), server_revision = policy_revision(server_id);
	struct endpoint *client, *server;
	struct policy_entry found;
	int reason;

	if (likely(stream->client_revision == client_revision && stream->server_revision == server_revision))
		return 0;
	if (client_id != server_id) {
		client = endpoint_of(&stream->client);
		server = endpoint_of(&stream->server);
		if (!client || !server || client->id != client_id || server->id != server_id)
			return REASON_POLICY_MOVED;
		reason = policy_judge(client_id, DIRECTION_EGRESS, server->identity, PROTOCOL_TCP, stream->server_port,
				      &found);
		if (!reason && found.rule_set)
			reason = REASON_NEEDS_PROXY;
		if (!reason) {
			reason = policy_judge(server_id, DIRECTION_INGRESS, client->identity, PROTOCOL_TCP,
					      stream->server_port, &found);
			if (!reason && found.rule_set)
				reason = REASON_NEEDS_PROXY;
		}
		if (reason == REASON_NEEDS_PROXY || reason == REASON_AUTH_REQUIRED || reason == REASON_PROXY_UNAVAILABLE)
			return REASON_NEEDS_PROXY;
		if (reason)
			return REASON_POLICY_MOVED;
	}
	stream->client_revision = client_revision;
	stream->server_revision = server_revision;
	return 0;
}

/* Connection tracking sees no packet of a busy connection: keep its two entries from expiring. */
static __always_inline void redirect_refresh(const struct config *config, struct stream *stream, int of_client)
{
	struct conntrack_entry *entry;
	struct flow_key key;

	redirect_flow_key(&key, stream, of_client);
	entry = map_lookup(MAP(conntrack), &key);
	if (entry && !(entry->flags & CONNTRACK_REVOKED))
		entry->expires = clock_ns() + config->tcp_timeout * SECOND_NS;
}

/* Why a socket's own wishes forbid it; 0 if they do not. */
static __always_inline int redirect_option_reason(__u8 flags)
{
	if (flags & SOCKET_ZEROCOPY)
		return REASON_OPTION_ZEROCOPY;
	if (flags & SOCKET_LOWAT)
		return REASON_OPTION_LOWAT;
	return 0;
}

/* Bring the count of bytes left to TCP up to date. The socket is locked by who sends. */
static __always_inline void stream_follow_tcp(struct stream *stream, __u32 sequence)
{
	__u32 more = sequence - stream->sequence;

	if (!more)
		return;
	stream->sequence = sequence;
	stream->tcp_bytes += more;
	stream->mark = stream->redirected + stream->tcp_bytes;
}

static __always_inline __u64 meeting_kind(__u64 meeting)
{
	return meeting & ((1 << PARTED_REASON_SHIFT) - 1);
}

/* Is this the socket of a pair: enrolled, or one that was and has left? */
static __always_inline int socket_is_paired(const struct socket_state *state)
{
	return state->stage == STAGE_ENROLLED || state->stage == STAGE_LEFT;
}

/* 0 when the next `size` bytes may be redirected, else the reason why not. */
static __always_inline int stream_refuses(const struct config *config, struct stream *stream, __u32 size)
{
	__u64 received = *(volatile __u64 *)&stream->received;
	__u64 sent = stream->redirected + stream->tcp_bytes;
	__u64 meeting = *(volatile __u64 *)&stream->meeting;

	if (!(config->flags & CONFIG_REDIRECT))
		return REASON_REDIRECT_OFF;
	if (unlikely(meeting != MEETING_MET)) {
		if (meeting_kind(meeting) == MEETING_PARTED)
			return meeting >> PARTED_REASON_SHIFT;
		if (meeting == MEETING_SENT_FIRST ||
		    __sync_val_compare_and_swap(&stream->meeting, MEETING_OPEN, MEETING_SENT_FIRST) != MEETING_MET)
			return REASON_SENT_FIRST;
	}
	if (stream->refused)
		return stream->refused;
	if (received < stream->mark || sent - received + size > (__u64)config->redirect_budget * BUDGET_UNIT)
		return REASON_READER_BEHIND;
	return redirect_judge(stream);
}

/* An event of a socket and not of a packet; with the totals of both directions, where they are given. */
static __always_inline void redirect_report(const struct config *config, const struct socket_state *state, __u8 reason,
					    const struct stream *mine, const struct stream *other)
{
	int of_client = state->side == SIDE_CLIENT;
	__u64 now = clock_ns();
	struct flow_event *event;
	__u64 samples;

	if (!event_allowed(config, now))
		return;
	event = ring_reserve(MAP(events), sizeof(*event), 0);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->time = now;
	event->local = of_client ? state->client : state->server;
	event->peer = of_client ? state->server : state->client;
	event->local_port = of_client ? state->client_port : state->server_port;
	event->peer_port = of_client ? state->server_port : state->client_port;
	event->endpoint = of_client ? state->client_endpoint : state->server_endpoint;
	event->direction = of_client ? DIRECTION_EGRESS : DIRECTION_INGRESS;
	event->protocol = PROTOCOL_TCP;
	event->place = PLACE_SOCKET;
	event->reason = reason;
	if (mine && other) {
		event->messages = mine->messages + other->messages;
		event->bytes = mine->redirected + other->redirected;
		samples = mine->latency_samples + other->latency_samples;
		if (samples)
			event->latency = (mine->latency_total + other->latency_total) / samples;
	}
	ring_submit(event, ring_query(MAP(events), BPF_RB_AVAIL_DATA) >= config->events_wakeup ? BPF_RB_FORCE_WAKEUP :
												 BPF_RB_NO_WAKEUP);
}

#endif

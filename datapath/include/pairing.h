/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Pairing: which two sockets of this node are the ends of one connection. Exact, or it does not happen: addresses
 * are no key, since NAT changes them and loopback's are the same in every pod.
 *
 * The client's SYN carries a random number in a TCP option (kind 254, shared experimental, RFC 6994), under which the
 * client has left an offer:
 *   connect            offer written, SYN with the nonce
 *   SYN-ACK            a listener of this node reads the nonce, and marks the offer seen (or says why it refuses)
 *   client established seen: the client's socket is enrolled, else it stays plain TCP
 *   server established the offer is taken, once; the server's socket is enrolled if the client's is and has not sent
 * Enrolled is what stands in `sockets`. All of it happens in the handshake, before either end can use the connection.
 *
 * A nonce alone is not believed: the client's address (not its port, which NAT may move) has to be the one in the
 * offer, and the server has to be the pod that the client asked for, or the client's own pod.
 *
 * The option is written only where the other end may be of this node: towards pods of this node, and from pods with a
 * sidecar, whose proxy may take any connection.
 */
#ifndef UNDERPASS_PAIRING_H
#define UNDERPASS_PAIRING_H

#include "redirect.h"

#define FAMILY_IPV6 10
#define LEVEL_TCP 6
#define OPTION_SAVE_SYN 27
#define HEADER_SYN 0x02
#define HEADER_SYN_ACK 0x12
#define SYN_COOKIE_MODE 2 /* args[0] of BPF_SOCK_OPS_HDR_OPT_LEN_CB */

#define NONCE_KIND 254
#define NONCE_MAGIC_0 0x0d
#define NONCE_MAGIC_1 0xa7
#define NONCE_LENGTH 12
#define NONCE_OFFSET 4
#define NONCE_SEARCH 4 /* kind, length and magic are what the helper compares */

static __always_inline int address_is_loopback(const struct addr *address)
{
	if (addr_is_v4(address))
		return (address->words[3] & to_be32(0xff000000)) == to_be32(0x7f000000);
	return !(address->words[0] | address->words[1] | address->words[2]) && address->words[3] == to_be32(1);
}

static __always_inline void pairing_local(const struct bpf_sock_ops *ctx, struct addr *address, __be16 *port)
{
	if (ctx->family == FAMILY_IPV6) {
		address->words[0] = ctx->local_ip6[0];
		address->words[1] = ctx->local_ip6[1];
		address->words[2] = ctx->local_ip6[2];
		address->words[3] = ctx->local_ip6[3];
		BRANCH_APART();
	} else {
		addr_from_v4(address, ctx->local_ip4);
	}
	*port = to_be16(ctx->local_port); /* host order, unlike the remote one */
}

static __always_inline void pairing_remote(const struct bpf_sock_ops *ctx, struct addr *address, __be16 *port)
{
	if (ctx->family == FAMILY_IPV6) {
		address->words[0] = ctx->remote_ip6[0];
		address->words[1] = ctx->remote_ip6[1];
		address->words[2] = ctx->remote_ip6[2];
		address->words[3] = ctx->remote_ip6[3];
		BRANCH_APART();
	} else {
		addr_from_v4(address, ctx->remote_ip4);
	}
	*port = to_be16(from_be32(ctx->remote_port)); /* 32 bits in network order */
}

static __always_inline void nonce_option(__u8 option[NONCE_LENGTH], int search)
{
	option[0] = NONCE_KIND;
	option[1] = search ? NONCE_SEARCH : NONCE_LENGTH;
	option[2] = NONCE_MAGIC_0;
	option[3] = NONCE_MAGIC_1;
}

/* The nonce in the SYN that this listener is answering, or that this socket was accepted for; 0: none. */
static __always_inline __u64 nonce_read(struct bpf_sock_ops *ctx)
{
	__u8 option[NONCE_LENGTH] = {};
	struct nonce nonce;

	nonce_option(option, 1);
	if (header_load(ctx, option, sizeof(option), BPF_LOAD_HDR_OPT_TCP_SYN) != NONCE_LENGTH)
		return 0;
	__builtin_memcpy(&nonce, option + NONCE_OFFSET, sizeof(nonce));
	return nonce.nonce;
}

static __always_inline struct namespace *pairing_namespace(__u64 cookie)
{
	struct namespace_key key = { .cookie = cookie };

	return map_lookup(MAP(namespaces), &key);
}

static __always_inline int port_is_plain(__be16 port)
{
	struct port_key key = { .port = port };

	return map_lookup(MAP(plain_ports), &key) != 0;
}

static __always_inline void pairing_plain(struct socket_state *state, __u32 reason)
{
	state->stage = STAGE_PLAIN;
	state->reason = reason;
	count(reason, PLACE_SOCKET, 0);
}

/* bpf_setsockopt(TCP_SAVE_SYN) keeps the headers of a SYN until the socket that is accepted for it closes. */
static __always_inline void pairing_listen(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;
	int on = 1;

	if (!sk || !pairing_namespace(namespace_cookie(ctx)))
		return;
	state = storage_get(MAP(states), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state || option_set(ctx, LEVEL_TCP, OPTION_SAVE_SYN, &on, sizeof(on)))
		return;
	state->flags |= SOCKET_LISTENER;
	callbacks_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/* Why this client's connection is not even tried; 0 if it is. */
static __always_inline int pairing_refuses(const struct config *config, struct socket_state *state)
{
	struct namespace *pod = pairing_namespace(state->space);
	struct endpoint *server = endpoint_of(&state->server), *client;
	int inside;

	if (server)
		state->server_endpoint = server->id;
	if (pod)
		state->client_endpoint = pod->endpoint;
	if (!pod || !(config->flags & CONFIG_REDIRECT))
		return REASON_REDIRECT_OFF;
	if ((pod->flags & NAMESPACE_NO_REDIRECT) || port_is_plain(state->server_port))
		return REASON_OPTED_OUT;
	inside = address_is_loopback(&state->server) || state->server_endpoint == state->client_endpoint;
	if (!(pod->flags & NAMESPACE_SIDECAR)) {
		if (!server || inside)
			return REASON_PEER_NOT_LOCAL;
		client = endpoint_of(&state->client);
		if (!client || client->id != state->client_endpoint)
			return REASON_PEER_NOT_LOCAL;
	}
	return redirect_option_reason(state->flags);
}

static __always_inline void pairing_connect(struct bpf_sock_ops *ctx)
{
	const struct config *config = config_get();
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;
	struct offer offer = {};
	void *tcp;
	int reason;

	if (!config || !sk || !pairing_namespace(namespace_cookie(ctx)))
		return; /* a process of the node itself */
	state = storage_get(MAP(states), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	tcp = tcp_sock_of(sk);
	if (!state || !tcp)
		return;
	state->generation++; /* the same socket may be connected again */
	state->cookie = state->own_cookie = socket_cookie(ctx);
	state->space = namespace_cookie(ctx);
	state->opened = clock_ns();
	state->side = SIDE_CLIENT;
	state->stage = STAGE_OFFERED;
	state->reason = 0;
	state->nonce = 0;
	state->client_endpoint = 0;
	state->server_endpoint = 0;
	state->sequence = TCP_WRITE_SEQUENCE(tcp) + 1; /* behind the SYN */
	pairing_local(ctx, &state->client, &state->client_port);
	pairing_remote(ctx, &state->server, &state->server_port);
	reason = pairing_refuses(config, state);
	if (mptcp_sock_of(sk))
		reason = REASON_MPTCP;
	if (reason) {
		pairing_plain(state, reason);
		return;
	}

	offer.cookie = state->cookie;
	offer.space = state->space;
	offer.client = state->client;
	offer.server = state->server;
	offer.client_port = state->client_port;
	offer.server_port = state->server_port;
	offer.generation = state->generation;
	offer.client_endpoint = state->client_endpoint;
	offer.server_endpoint = state->server_endpoint;
	state->nonce = (__u64)random_u32() << 32 | random_u32();
	if (!state->nonce || map_update(MAP(offers), &state->nonce, &offer, BPF_NOEXIST)) {
		state->nonce = 0;
		pairing_plain(state, REASON_REDIRECT_FULL);
		return;
	}
	callbacks_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG |
				   BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* Is this socket's end of the connection the one that the offer is for? Returns a reason or 0. */
static __always_inline int offer_refused(struct bpf_sock_ops *ctx, const struct offer *offer, __u64 space)
{
	struct namespace *pod = pairing_namespace(space);
	__be16 port = to_be16(ctx->local_port), unused;
	struct addr client;

	pairing_remote(ctx, &client, &unused);
	if (!addr_equal(&client, &offer->client))
		return REASON_NONCE_FOREIGN;
	if (space != offer->space && (!pod || !offer->server_endpoint || pod->endpoint != offer->server_endpoint))
		return REASON_NONCE_FOREIGN;
	if ((pod && (pod->flags & NAMESPACE_NO_REDIRECT)) || port_is_plain(port))
		return REASON_OPTED_OUT;
	return 0;
}

/* The SYN-ACK: a listener of this node has got the nonce. */
static __always_inline void pairing_answer(struct bpf_sock_ops *ctx)
{
	__u64 nonce, space;
	struct offer *offer;
	int reason;

	if (ctx->args[0] == SYN_COOKIE_MODE)
		return;
	nonce = nonce_read(ctx);
	offer = nonce ? map_lookup(MAP(offers), &nonce) : 0;
	if (!offer)
		return;
	space = namespace_cookie(ctx);
	reason = offer_refused(ctx, offer, space);
	if (reason == REASON_NONCE_FOREIGN) {
		count(reason, PLACE_SOCKET, 0);
		return;
	}
	offer->reason = reason;
	if (space == offer->space)
		offer->server_endpoint = offer->client_endpoint;
	offer->seen = 1;
}

/* Before the header of each segment of a socket that has an offer, and of a listener's SYN-ACKs. */
static __always_inline void pairing_reserve(struct bpf_sock_ops *ctx)
{
	__u32 flags = ctx->skb_tcp_flags & HEADER_SYN_ACK;
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;

	if (flags == HEADER_SYN_ACK) {
		pairing_answer(ctx);
		return;
	}
	if (flags != HEADER_SYN || !sk)
		return;
	state = storage_get(MAP(states), sk, 0, 0);
	if (state && state->nonce)
		header_reserve(ctx, NONCE_LENGTH, 0); /* no room: no nonce, plain TCP */
}

static __always_inline void pairing_write(struct bpf_sock_ops *ctx)
{
	__u8 option[NONCE_LENGTH];
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;

	if ((ctx->skb_tcp_flags & HEADER_SYN_ACK) != HEADER_SYN || !sk)
		return;
	state = storage_get(MAP(states), sk, 0, 0);
	if (!state || !state->nonce)
		return;
	nonce_option(option, 0);
	__builtin_memcpy(option + NONCE_OFFSET, &state->nonce, sizeof(state->nonce));
	header_store(ctx, option, sizeof(option), 0);
}

/* Make the socket one of an accelerated pair. Returns a reason or 0. */
static __always_inline int pairing_enrol(struct bpf_sock_ops *ctx, struct socket_state *state, __u32 meeting)
{
	struct socket_key key;
	struct stream stream = {};
	long result;
	int reason;

	stream.opened = state->opened;
	stream.refreshed = clock_coarse_ns();
	stream.client = state->client;
	stream.server = state->server;
	stream.client_port = state->client_port;
	stream.server_port = state->server_port;
	stream.client_endpoint = state->client_endpoint;
	stream.server_endpoint = state->server_endpoint;
	stream.sequence = state->sequence;
	stream.side = state->side;
	stream.meeting = meeting;
	stream.client_revision = ~0ULL; /* never judged */
	reason = redirect_judge(&stream);
	if (reason)
		return reason;
	socket_key_of(&key, state, state->side);
	if (map_update(MAP(streams), &key, &stream, BPF_NOEXIST))
		return REASON_REDIRECT_FULL;
	result = sockets_add(ctx, MAP(sockets), &key, BPF_NOEXIST);
	if (!result)
		return 0;
	map_delete(MAP(streams), &key);
	return result == -UNDERPASS_EBUSY ? REASON_FOREIGN_OWNER : REASON_REDIRECT_FULL;
}

static __always_inline void pairing_client(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct config *config = config_get();
	struct socket_state *state;
	struct offer *offer;
	void *tcp;
	int reason;

	if (!sk || !config)
		return;
	state = storage_get(MAP(states), sk, 0, 0);
	tcp = tcp_sock_of(sk);
	if (!state || !tcp || state->stage != STAGE_OFFERED)
		return;
	callbacks_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	offer = map_lookup(MAP(offers), &state->nonce);
	if (!offer || !offer->seen) {
		/* Nobody on this node has answered: nobody will take the offer either. */
		map_delete(MAP(offers), &state->nonce);
		pairing_plain(state, REASON_NO_NONCE);
		return;
	}
	state->server_endpoint = offer->server_endpoint;
	reason = offer->reason;
	if (!reason)
		reason = redirect_option_reason(state->flags);
	if (!reason && TCP_WRITE_SEQUENCE(tcp) != state->sequence)
		reason = REASON_SENT_FIRST; /* data in the SYN */
	if (!reason)
		reason = pairing_enrol(ctx, state, MEETING_OPEN);
	offer->reason = reason;
	if (reason) {
		pairing_plain(state, reason);
		return;
	}
	state->stage = STAGE_ENROLLED;
	offer->enrolled = 1;
}

/* Fills in the state of an accepted socket; returns a reason or 0. */
static __always_inline int pairing_take(struct bpf_sock_ops *ctx, const struct config *config, struct bpf_sock *sk,
					struct socket_state *state)
{
	struct socket_key key;
	struct stream *from_client;
	struct offer *found, offer;
	struct namespace *pod;
	struct endpoint *client;
	__u64 nonce;
	int reason;

	pod = pairing_namespace(state->space);
	client = endpoint_of(&state->client);
	if (pod)
		state->server_endpoint = pod->endpoint;
	if (client)
		state->client_endpoint = client->id;
	if (!pod || !(config->flags & CONFIG_REDIRECT))
		return REASON_REDIRECT_OFF;
	if (mptcp_sock_of(sk))
		return REASON_MPTCP;
	if (!(state->flags & SOCKET_LISTENER))
		return REASON_BEFORE_AGENT;
	nonce = nonce_read(ctx);
	found = nonce ? map_lookup(MAP(offers), &nonce) : 0;
	if (!found)
		return client ? REASON_NO_NONCE : REASON_PEER_NOT_LOCAL;
	if (offer_refused(ctx, found, state->space) == REASON_NONCE_FOREIGN)
		return REASON_NONCE_FOREIGN;
	offer = *found;
	if (map_delete(MAP(offers), &nonce))
		return REASON_NO_NONCE; /* taken by another */
	if (!offer.enrolled)
		return offer.reason ? offer.reason : REASON_NO_NONCE;
	reason = redirect_option_reason(state->flags);

	state->cookie = offer.cookie;
	state->generation = offer.generation;
	state->client = offer.client;
	state->server = offer.server;
	state->client_port = offer.client_port;
	state->server_port = offer.server_port;
	state->client_endpoint = offer.client_endpoint;
	state->server_endpoint = offer.server_endpoint;
	socket_key_of(&key, state, SIDE_CLIENT);
	from_client = map_lookup(MAP(streams), &key);
	if (!from_client)
		return REASON_PEER_GONE;
	if (!reason)
		reason = pairing_enrol(ctx, state, MEETING_MET);
	/* One of the two comes first, and both know which: the client's first byte, or the end of this. */
	if (reason) {
		from_client->reason = reason;
		__sync_val_compare_and_swap(&from_client->meeting, MEETING_OPEN, MEETING_SENT_FIRST);
		return reason;
	}
	if (__sync_val_compare_and_swap(&from_client->meeting, MEETING_OPEN, MEETING_MET) == MEETING_OPEN)
		return 0;
	key.side = SIDE_SERVER;
	map_delete(MAP(sockets), &key);
	map_delete(MAP(streams), &key);
	return REASON_SENT_FIRST;
}

static __always_inline void pairing_server(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct config *config = config_get();
	struct socket_state *state;
	void *tcp;
	int reason;

	if (!sk || !config || !pairing_namespace(namespace_cookie(ctx)))
		return;
	/* The listener's flags are inherited, its callback for each header is not wanted. */
	callbacks_set(ctx, (ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG) |
				   BPF_SOCK_OPS_STATE_CB_FLAG);
	state = storage_get(MAP(states), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	tcp = tcp_sock_of(sk);
	if (!state || !tcp)
		return;
	state->cookie = state->own_cookie = socket_cookie(ctx);
	state->space = namespace_cookie(ctx);
	state->opened = clock_ns();
	state->side = SIDE_SERVER;
	state->stage = STAGE_IDLE;
	state->sequence = TCP_WRITE_SEQUENCE(tcp);
	pairing_local(ctx, &state->server, &state->server_port);
	pairing_remote(ctx, &state->client, &state->client_port);
	reason = pairing_take(ctx, config, sk, state);
	if (reason) {
		pairing_plain(state, reason);
		return;
	}
	state->stage = STAGE_ENROLLED;
	state->reason = 0;
	count(REASON_ACCELERATED, PLACE_SOCKET, 0);
	redirect_report(config, state, REASON_ACCELERATED, 0, 0);
}

static __always_inline void pairing_close(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct config *config = config_get();
	struct stream *mine, *other;
	struct socket_state *state;
	struct socket_key key;

	if (!sk || ctx->args[1] != BPF_TCP_CLOSE)
		return;
	state = storage_get(MAP(states), sk, 0, 0);
	if (!state)
		return;
	if (state->side == SIDE_CLIENT && state->nonce) {
		map_delete(MAP(offers), &state->nonce);
		state->nonce = 0;
	}
	if (!socket_is_paired(state))
		return;
	state->stage = STAGE_IDLE;
	socket_key_of(&key, state, state->side);
	mine = map_lookup(MAP(streams), &key);
	key.side = !state->side;
	other = map_lookup(MAP(streams), &key);
	/* Whoever closes first reports, once for a connection: totals of both directions are there. */
	if (mine && other && config && meeting_kind(mine->meeting) >= MEETING_MET) {
		count(REASON_ACCELERATED_CLOSED, PLACE_SOCKET, 0);
		redirect_report(config, state, REASON_ACCELERATED_CLOSED, mine, other);
	}
	key.side = state->side;
	map_delete(MAP(streams), &key);
}

#endif

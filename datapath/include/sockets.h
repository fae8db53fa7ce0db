/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services at the socket: connect() and sendmsg() to a service address go to a backend, and what the application asks
 * later (getpeername, recvfrom) shows the service's address again. No packet ever carries a service address, so
 * nothing has to be translated per packet.
 *
 * The IPv4 and IPv6 hooks differ in the fields of their context alone. A v4-mapped address on an IPv6 socket is the
 * same key as the IPv4 address, since all addresses are 128 bits.
 *
 * A service without a backend, or a port that no service has inside the service range: ECONNREFUSED.
 */
#ifndef UNDERPASS_SOCKETS_H
#define UNDERPASS_SOCKETS_H

#include "configuration.h"
#include "metrics.h"
#include "packet.h"
#include "services.h"

#define SOCKET_GO_ON 1
#define SOCKET_REFUSE 0

struct socket_peer {
	struct addr address;
	__be16 port;
	__u8 protocol;
};

static __always_inline void socket_read4(struct bpf_sock_addr *ctx, struct socket_peer *peer)
{
	addr_from_v4(&peer->address, ctx->user_ip4);
	peer->port = ctx->user_port;
	peer->protocol = ctx->protocol;
}

static __always_inline void socket_write4(struct bpf_sock_addr *ctx, const struct addr *address, __be16 port)
{
	STORE_ONCE(ctx->user_ip4, address->words[3]);
	STORE_ONCE(ctx->user_port, port);
}

static __always_inline void socket_read6(struct bpf_sock_addr *ctx, struct socket_peer *peer)
{
	peer->address.words[0] = ctx->user_ip6[0];
	peer->address.words[1] = ctx->user_ip6[1];
	peer->address.words[2] = ctx->user_ip6[2];
	peer->address.words[3] = ctx->user_ip6[3];
	peer->port = ctx->user_port;
	peer->protocol = ctx->protocol;
}

static __always_inline void socket_write6(struct bpf_sock_addr *ctx, const struct addr *address, __be16 port)
{
	STORE_ONCE(ctx->user_ip6[0], address->words[0]);
	STORE_ONCE(ctx->user_ip6[1], address->words[1]);
	STORE_ONCE(ctx->user_ip6[2], address->words[2]);
	STORE_ONCE(ctx->user_ip6[3], address->words[3]);
	STORE_ONCE(ctx->user_port, port);
}

static __always_inline int socket_refuse(__u32 reason)
{
	count(reason, PLACE_SOCKET, 0);
	set_return_value(-UNDERPASS_ECONNREFUSED);
	return SOCKET_REFUSE;
}

/* NodePorts answer at every node's address, and at 127.0.0.1 for the node's own processes. */
static __always_inline int socket_peer_is_node(const struct config *config, const struct addr *address,
					       __u64 namespace_id)
{
	if (addr_is_v4(address) && (address->words[3] & to_be32(0xff000000)) == to_be32(0x7f000000))
		return namespace_id == config->host_namespace;
	return node_of(address) != 0;
}

/*
 * A number that stays with a socket. Cookies are counted up, so they are stirred (two rounds of multiply and fold): of
 * a client whose every fourth socket is for one service, all cookies are the same modulo four.
 */
static __always_inline __u32 socket_lot(__u64 cookie)
{
	cookie *= 0x9e3779b97f4a7c15ULL;
	cookie ^= cookie >> 32;
	cookie *= 0xd6e8feb86659fd93ULL;
	return cookie >> 32;
}

/*
 * Where should this socket go instead? Returns SOCKET_REFUSE, or SOCKET_GO_ON with `*found` telling whether `peer`
 * holds a backend now.
 */
static __always_inline int socket_translate(struct bpf_sock_addr *ctx, struct socket_peer *peer, int *found)
{
	const struct config *config = config_get();
	struct namespace_key space = { .cookie = namespace_cookie(ctx) };
	struct affinity_key client = { .client_cookie = space.cookie };
	struct origin_key key = {};
	struct origin origin = {};
	struct namespace *pod;
	struct choice choice;
	int in_range;
	struct question ask = {
		.address = &peer->address,
		.port = peer->port,
		.protocol = peer->protocol,
		.scope = SCOPE_CLUSTER,
	};

	*found = 0;
	if (!config || !protocol_has_ports(peer->protocol))
		return SOCKET_GO_ON;
	key.cookie = socket_cookie(ctx);
	ask.is_node = socket_peer_is_node(config, &peer->address, space.cookie);
	/* The datagrams of one socket belong together (QUIC): they go to one backend, also without connect(). */
	ask.lot = peer->protocol == PROTOCOL_TCP ? random_u32() : socket_lot(key.cookie);
	in_range = addr_in_range(&peer->address, &config->service_range, &config->service_mask);
	choice = service_choose(&ask, &client);
	if (!choice.service && !in_range)
		return SOCKET_GO_ON;
	pod = map_lookup(MAP(namespaces), &space);
	/* What the proxy itself asks for passes no proxy: it has nothing to see. */
	if (pod && (pod->flags & NAMESPACE_NO_SOCKET_SERVICES) && (__u32)current_uid_gid() != PROXY_UID)
		return SOCKET_GO_ON;
	if (!choice.service)
		return socket_refuse(REASON_SERVICE_UNKNOWN);
	if (!choice.backend)
		return socket_refuse(REASON_SERVICE_NO_BACKEND);

	key.peer = choice.backend->address;
	key.peer_port = choice.backend->port;
	key.protocol = peer->protocol;
	origin.address = peer->address;
	origin.port = peer->port;
	origin.service = choice.service->id;
	/* A full table costs the application the sight of the service's address, not its connection. */
	map_update(MAP(origins), &key, &origin, BPF_ANY);
	peer->address = choice.backend->address;
	peer->port = choice.backend->port;
	count(REASON_SERVICE_TRANSLATED, PLACE_SOCKET, 0);
	*found = 1;
	return SOCKET_GO_ON;
}

/* The service address behind a backend that this socket talks to; returns 1 when there is one. */
static __always_inline int socket_restore(struct bpf_sock_addr *ctx, struct socket_peer *peer)
{
	struct origin_key key = {
		.cookie = socket_cookie(ctx),
		.peer = peer->address,
		.peer_port = peer->port,
		.protocol = peer->protocol,
	};
	struct origin *origin = map_lookup(MAP(origins), &key);

	if (!origin)
		return 0;
	peer->address = origin->address;
	peer->port = origin->port;
	count(REASON_REPLY_TRANSLATED, PLACE_SOCKET, 0);
	return 1;
}

#define SOCKET_TRANSLATE(ctx, family) \
	({ \
		struct socket_peer peer_ = {}; \
		int found_, result_; \
\
		socket_read##family(ctx, &peer_); \
		result_ = socket_translate(ctx, &peer_, &found_); \
		if (found_) \
			socket_write##family(ctx, &peer_.address, peer_.port); \
		result_; \
	})

#define SOCKET_RESTORE(ctx, family) \
	({ \
		struct socket_peer peer_ = {}; \
\
		socket_read##family(ctx, &peer_); \
		if (socket_restore(ctx, &peer_)) \
			socket_write##family(ctx, &peer_.address, peer_.port); \
		SOCKET_GO_ON; \
	})

#endif

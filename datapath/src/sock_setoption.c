/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_setoption: notes the socket options with which redirected bytes do not get on.
 *
 * Hook      cgroup/setsockopt at the node's cgroup root.
 * Contract  SO_ZEROCOPY and SO_RCVLOWAT above 1 are noted in the socket's storage (what a listener accepts inherits
 *           them); the connection is then not enrolled, or if it is already, that direction goes by TCP. Kernel TLS
 *           on an accelerated socket is refused (EOPNOTSUPP, as where there is none; libraries then encrypt by
 *           themselves): the two do not mix. Every other call goes on as it was.
 * Cost      Two comparisons for each setsockopt().
 * Kernel    6.6.
 */
#include "redirect.h"

#define LEVEL_SOCKET 1
#define LEVEL_TCP 6
#define OPTION_ULP 31
#define OPTION_LOWAT 18
#define OPTION_ZEROCOPY 60

/* Set on an accelerated connection: what the peer sends goes by TCP from here on. */
static __always_inline void refuse_peer(const struct socket_state *state, __u8 reason)
{
	struct socket_key key;
	struct stream *stream;

	if (state->stage != STAGE_ENROLLED)
		return;
	socket_key_of(&key, state, !state->side);
	stream = map_lookup(MAP(streams), &key);
	if (stream)
		stream->refused = reason;
}

PROGRAM("cgroup/setsockopt")
int sock_setoption(struct bpf_sockopt *ctx)
{
	int *value = ctx->optval;
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;

	if (!sk)
		return 1;
	if (ctx->level == LEVEL_TCP && ctx->optname == OPTION_ULP) {
		state = storage_get(MAP(states), sk, 0, 0);
		if (!state || !socket_is_paired(state))
			return 1;
		set_return_value(-UNDERPASS_EOPNOTSUPP);
		return 0;
	}
	if (ctx->level != LEVEL_SOCKET || (ctx->optname != OPTION_LOWAT && ctx->optname != OPTION_ZEROCOPY) ||
	    (void *)(value + 1) > ctx->optval_end)
		return 1;
	state = storage_get(MAP(states), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return 1;
	if (ctx->optname == OPTION_ZEROCOPY) {
		state->flags = *value > 0 ? state->flags | SOCKET_ZEROCOPY : state->flags & ~SOCKET_ZEROCOPY;
		return 1;
	}
	state->flags = *value > 1 ? state->flags | SOCKET_LOWAT : state->flags & ~SOCKET_LOWAT;
	refuse_peer(state, *value > 1 ? REASON_OPTION_LOWAT : 0);
	return 1;
}

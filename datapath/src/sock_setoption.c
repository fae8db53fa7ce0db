/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_setoption: notes the socket options with which redirected bytes do not get on.
 *
 * Hook      cgroup/setsockopt at the node's cgroup root.
 * Contract  SO_ZEROCOPY and SO_RCVLOWAT above 1 are noted in the socket's storage (what a listener accepts inherits
 *           them); the connection is then not enrolled. Every call goes on as it was.
 * Cost      Two comparisons for each setsockopt().
 * Kernel    6.6.
 */
#include "redirect.h"

#define LEVEL_SOCKET 1
#define OPTION_LOWAT 18
#define OPTION_ZEROCOPY 60

PROGRAM("cgroup/setsockopt")
int sock_setoption(struct bpf_sockopt *ctx)
{
	int *value = ctx->optval;
	struct bpf_sock *sk = ctx->sk;
	struct socket_state *state;
	__u8 flag;

	if (ctx->level != LEVEL_SOCKET || (ctx->optname != OPTION_LOWAT && ctx->optname != OPTION_ZEROCOPY) || !sk)
		return 1;
	if ((void *)(value + 1) > ctx->optval_end)
		return 1;
	flag = ctx->optname == OPTION_LOWAT ? SOCKET_LOWAT : SOCKET_ZEROCOPY;
	state = storage_get(MAP(states), sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return 1;
	if (*value > (flag == SOCKET_LOWAT ? 1 : 0))
		state->flags |= flag;
	else
		state->flags &= ~flag;
	return 1;
}

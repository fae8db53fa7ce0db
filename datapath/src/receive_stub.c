/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * receive_stub: runs after each receive call of any socket.
 *
 * Hook      tracepoint sock_recv_length with BTF (tp_btf), kernel 6.3. Its link is pinned and never replaced: two
 *           copies would count twice, a gap would lose a count. An upgrade swaps the program in `readers`.
 * Contract  Reads only.
 * Cost      One tail call.
 * Kernel    6.6.
 */
#include "helpers.h"
#include "maps.h"

PROGRAM("tp_btf/sock_recv_length")
int receive_stub(__u64 *ctx)
{
	tail_call(ctx, MAP(readers), REDIRECT_SLOT);
	return 0;
}

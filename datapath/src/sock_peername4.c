/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_peername4: getpeername().
 *
 * Hook      cgroup/getpeername4 at the node's cgroup root: pods and the node's own processes.
 * Contract  Shows the service address that the application connected to.
 * Cost      One hash look-up.
 * Kernel    6.6.
 */
#include "sockets.h"

PROGRAM("cgroup/getpeername4")
int sock_peername4(struct bpf_sock_addr *ctx)
{
	return SOCKET_RESTORE(ctx, 4);
}

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_peername6: getpeername().
 *
 * Hook      cgroup/getpeername6 at the node's cgroup root: pods and the node's own processes.
 * Contract  Shows the service address that the application connected to.
 *           Sockets of family AF_INET6: v4-mapped addresses are IPv4 services.
 * Cost      One hash look-up.
 * Kernel    6.6.
 */
#include "sockets.h"

PROGRAM("cgroup/getpeername6")
int sock_peername6(struct bpf_sock_addr *ctx)
{
	return SOCKET_RESTORE(ctx, 6);
}

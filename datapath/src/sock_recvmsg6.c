/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_recvmsg6: recvfrom()/recvmsg() on a UDP socket.
 *
 * Hook      cgroup/recvmsg6 at the node's cgroup root: pods and the node's own processes.
 * Contract  An answer from a backend shows the service's address as its source, as the application expects.
 *           Sockets of family AF_INET6: v4-mapped addresses are IPv4 services.
 * Cost      One hash look-up for each datagram.
 * Kernel    6.6.
 */
#include "sockets.h"

PROGRAM("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return SOCKET_RESTORE(ctx, 6);
}

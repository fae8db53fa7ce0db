/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_recvmsg4: recvfrom()/recvmsg() on a UDP socket.
 *
 * Hook      cgroup/recvmsg4 at the node's cgroup root: pods and the node's own processes.
 * Contract  An answer from a backend shows the service's address as its source, as the application expects.
 * Cost      One hash look-up for each datagram.
 * Kernel    6.6.
 */
#include "sockets.h"

PROGRAM("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return SOCKET_RESTORE(ctx, 4);
}

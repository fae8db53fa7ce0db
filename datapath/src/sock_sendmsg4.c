/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_sendmsg4: sendto()/sendmsg() with an address on an unconnected UDP socket.
 *
 * Hook      cgroup/sendmsg4 at the node's cgroup root: pods and the node's own processes.
 * Contract  A datagram to a service address goes to a backend, those of one socket to the same one for as long
 *           as the service does not change. ECONNREFUSED when there is no backend.
 * Cost      As for connect, for each datagram.
 * Kernel    6.6 (bpf_set_retval in this hook: 5.18).
 */
#include "sockets.h"

PROGRAM("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return SOCKET_TRANSLATE(ctx, 4);
}

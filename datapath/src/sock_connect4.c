/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_connect4: connect() of a TCP or UDP socket.
 *
 * Hook      cgroup/connect4 at the node's cgroup root: pods and the node's own processes.
 * Contract  A socket that connects to a service address is connected to a backend instead; getpeername() still
 *           shows the service. ECONNREFUSED when there is no backend.
 * Cost      Two hash look-ups when the address is no service; three more and one insert when it is.
 * Kernel    6.6 (bpf_set_retval in this hook: 5.18).
 */
#include "sockets.h"

PROGRAM("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return SOCKET_TRANSLATE(ctx, 4);
}

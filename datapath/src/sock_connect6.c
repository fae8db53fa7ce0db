/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_connect6: connect() of a TCP or UDP socket.
 *
 * Hook      cgroup/connect6 at the node's cgroup root: pods and the node's own processes.
 * Contract  A socket that connects to a service address is connected to a backend instead; getpeername() still
 *           shows the service. ECONNREFUSED when there is no backend.
 *           Sockets of family AF_INET6: v4-mapped addresses are IPv4 services.
 * Cost      Two hash look-ups when the address is no service; three more and one insert when it is.
 * Kernel    6.6 (bpf_set_retval in this hook: 5.18).
 */
#include "sockets.h"

PROGRAM("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return SOCKET_TRANSLATE(ctx, 6);
}

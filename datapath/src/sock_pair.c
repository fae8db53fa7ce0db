/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * sock_pair: finds the two ends of each connection between pods of this node, and enrols both or neither.
 *
 * Hook      sock_ops at the node's cgroup root.
 * Contract  See pairing.h. Never fails a connection: whatever goes wrong leaves it plain TCP, with the reason in the
 *           socket's storage. Sockets outside pods are left alone.
 * Cost      At connect, accept and close alone: two to eight hash look-ups, and 12 bytes in the SYN.
 * Kernel    6.6 (bpf_reserve_hdr_opt 5.10; bpf_skc_to_mptcp_sock 5.19).
 */
#include "pairing.h"

PROGRAM("sockops")
int sock_pair(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		pairing_listen(ctx);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		pairing_connect(ctx);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		pairing_reserve(ctx);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		pairing_write(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		pairing_client(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		pairing_server(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		pairing_close(ctx);
		break;
	default:
		ctx->reply = (__u32)-1; /* no opinion */
	}
	return 1; /* 0 would make the kernel forget the header option, without a word */
}

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * message_send: hands a message to the peer's socket, or leaves it to TCP.
 *
 * Hook      tail call from message_stub (`senders`), for each send on an enrolled socket. The socket is locked.
 * Contract  See redirect.h. Always SK_PASS: what cannot be redirected goes by TCP, nothing is ever refused here.
 * Cost      One look-up in the socket's storage, one in a hash, four in arrays, and the peer's in `sockets`. One
 *           message in 16 is timed.
 * Kernel    6.6.
 */
#include "redirect.h"

PROGRAM("sk_msg")
int message_send(struct sk_msg_md *msg)
{
	const struct config *config = config_get();
	struct bpf_sock *sk = msg->sk;
	struct socket_state *state;
	struct socket_key key;
	struct stream *stream;
	__u32 size = msg->size;
	__u64 now;
	void *tcp;
	int reason;

	if (!config || !sk)
		return SK_PASS;
	state = storage_get(MAP(states), sk, 0, 0);
	tcp = tcp_sock_of(sk);
	if (!state || !tcp || state->stage != STAGE_ENROLLED)
		return SK_PASS;
	socket_key_of(&key, state, state->side);
	stream = map_lookup(MAP(streams), &key);
	if (!stream)
		return SK_PASS;
	stream_follow_tcp(stream, TCP_WRITE_SEQUENCE(tcp));
	reason = redirect_option_reason(state->flags & SOCKET_ZEROCOPY);
	if (!reason)
		reason = stream_refuses(config, stream, size);
	if (!reason) {
		key.side = !state->side;
		if (message_redirect(msg, MAP(sockets), &key, BPF_F_INGRESS) != SK_PASS)
			reason = REASON_PEER_GONE;
	}
	count(reason ? reason : REASON_REDIRECTED, PLACE_SOCKET, size);
	stream->reason = reason;
	if (unlikely(reason)) {
		stream->tcp_messages++;
		return SK_PASS;
	}
	stream->redirected += size;
	if (!(stream->messages++ % LATENCY_SAMPLE) && !stream->stamp) {
		stream->stamp_position = stream->redirected + stream->tcp_bytes;
		stream->cpu = processor();
		stream->stamp = clock_ns();
	}
	now = clock_coarse_ns();
	if (unlikely(now - stream->refreshed > REFRESH_NS)) {
		stream->refreshed = now;
		redirect_refresh(config, stream, 1);
		redirect_refresh(config, stream, 0);
	}
	return SK_PASS;
}

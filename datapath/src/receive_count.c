/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * receive_count: counts the bytes that the reader of an accelerated connection has read.
 *
 * Hook      tail call from receive_stub (`readers`): tracepoint sock_recv_length(sk, result, flags).
 * Contract  Adds to `received` of the stream that the socket reads. What is not read from the stream does not count
 *           (MSG_PEEK, the error queue, urgent data, errors). What is read by other ways (splice) is not seen: it stays
 *           unread here, and the sender stays on TCP, which is safe.
 * Cost      One look-up in the socket's storage, for every socket of the machine; a hash look-up for enrolled ones.
 * Kernel    6.6.
 */
#include "redirect.h"

#define NOT_FROM_THE_STREAM (0x1 | 0x2 | 0x2000) /* MSG_OOB, MSG_PEEK, MSG_ERRQUEUE */

/* Are the two ends on one CPU? By it the agent chooses (leave.h). Of the latest 50,000 samples or so. */
static __always_inline void count_processor(struct socket_state *state, int same)
{
	if (state->same_cpu == 0xffff || state->other_cpu == 0xffff) {
		state->same_cpu /= 2;
		state->other_cpu /= 2;
	}
	if (same)
		state->same_cpu++;
	else
		state->other_cpu++;
}

PROGRAM("tp_btf/sock_recv_length")
int receive_count(__u64 *ctx)
{
	void *sk = (void *)ctx[0];
	int result = (int)ctx[1], flags = (int)ctx[2];
	struct socket_state *state;
	struct socket_key key;
	struct stream *stream;
	__u64 latency;

	if (result <= 0 || (flags & NOT_FROM_THE_STREAM))
		return 0;
	state = storage_get(MAP(states), sk, 0, 0);
	if (!state || !socket_is_paired(state))
		return 0;
	socket_key_of(&key, state, !state->side);
	stream = map_lookup(MAP(streams), &key);
	if (!stream)
		return 0;
	__sync_fetch_and_add(&stream->received, result);
	if (stream->stamp && stream->received >= stream->stamp_position) {
		latency = clock_ns() - stream->stamp;
		stream->latency_samples++;
		stream->latency_total += latency;
		if (latency > stream->latency_most)
			stream->latency_most = latency;
		stream->stamp = 0;
		count_processor(state, stream->cpu == (__u8)processor());
	}
	return 0;
}

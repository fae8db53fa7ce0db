/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Leaving: a sender that would be better off with plain TCP gets it back, while its connection is open.
 *
 * Two kinds of streams are: those of very small messages, which TCP joins, and those whose reader stays behind, which
 * go by TCP anyway. The agent chooses (agent/redirect/choice.py). Only the sender's socket leaves `sockets`; its reader
 * stays, so what was redirected before is read before what comes by TCP. What could go wrong, and why it does not:
 *
 *   - The kernel wakes a recv() that waits in a socket which is taken out, and it says EAGAIN. So nobody may be in one:
 *     each call on the socket holds a reference to its place in the map (`psock`), and those that wait to send are
 *     counted by the socket itself; the two must agree. The socket is locked here, so no call gets on meanwhile. What
 *     is left is a recv() that begins between this look and the end of the removal, a fraction of a microsecond.
 *   - Redirected bytes that are unread in the socket would be lost. So both directions go over to TCP first (PARTED),
 *     then the agent waits until no program that saw the time before is still running, and only then the counters
 *     decide: all bytes that were redirected to the socket have been read, those on their way too.
 *   - Some kernels count redirected bytes into TCP's own position in what was received: plain TCP would lose bytes. There
 *     the two positions differ (copied_seq, rcv_nxt), and the socket stays.
 *
 *   step     | meaning                                       | next
 *   ---------+-----------------------------------------------+------------------------------------------------
 *   ASKED    | the agent wants it to leave                   | PARTED, when nobody but senders is in a call
 *   PARTED   | both directions go by TCP                     | LEFT, when also nothing towards it is unread
 *   RETURN   | the agent gives up: redirected again          | the entry is deleted here
 *   LEFT     | plain TCP, for as long as it is connected     | the agent deletes the entry
 */
#ifndef UNDERPASS_LEAVE_H
#define UNDERPASS_LEAVE_H

#include "redirect.h"

#define USER_DATA_FLAGS 7UL
#define USER_DATA_IS_PSOCK 4UL

/* May somebody be in a recv() on this socket? Exact for calls that have begun: see above. */
static __always_inline int leave_in_use(void *tcp)
{
	__u64 data = *KERNEL_FIELD(tcp, sock, sk_user_data, __u64);
	__u32 senders = *KERNEL_FIELD(tcp, sock, sk_write_pending, __u32);
	__u32 references = 0;

	if (!(data & USER_DATA_IS_PSOCK) ||
	    kernel_read(&references, sizeof(references),
			KERNEL_FIELD(data & ~USER_DATA_FLAGS, sk_psock, refcnt, __u32)))
		return 1;
	return references != 1 + senders;
}

/* Is anything that was sent to this socket not read yet, or on its way from socket to socket? */
static __always_inline int leave_unread(void *tcp, const struct stream *towards)
{
	__u64 by_tcp = *KERNEL_FIELD(tcp, tcp_sock, bytes_received, __u64);

	if (*KERNEL_FIELD(tcp, tcp_sock, copied_seq, __u32) != *KERNEL_FIELD(tcp, tcp_sock, rcv_nxt, __u32))
		return 1;
	return *(volatile __u64 *)&towards->redirected + by_tcp != *(volatile __u64 *)&towards->received;
}

static __always_inline void leave_step(const struct config *config, struct departure *departure,
				       struct socket_state *state, void *tcp)
{
	__u64 parted = MEETING_PARTED | (__u64)departure->reason << PARTED_REASON_SHIFT;
	struct stream *mine, *towards;
	struct socket_key key;

	socket_key_of(&key, state, !state->side);
	towards = map_lookup(MAP(streams), &key);
	key.side = state->side;
	mine = map_lookup(MAP(streams), &key);
	if (!mine || !towards)
		return;
	/* What parts two ends is the reason that is in their streams: none would mean that they had not parted. */
	if (departure->reason != REASON_SMALL_MESSAGES && departure->reason != REASON_SLOW_READER)
		return;
	if (departure->step == DEPARTURE_RETURN) {
		/* As after any time by TCP: redirected again when nothing left to it is unread. */
		__sync_val_compare_and_swap(&mine->meeting, parted, MEETING_MET);
		__sync_val_compare_and_swap(&towards->meeting, parted, MEETING_MET);
		map_delete(MAP(departures), &key);
		return;
	}
	departure->obstacle = OBSTACLE_IN_USE;
	if (leave_in_use(tcp))
		return;
	if (departure->step == DEPARTURE_ASKED) {
		/* From MET a stream goes nowhere but here. */
		if (*(volatile __u64 *)&mine->meeting != MEETING_MET || *(volatile __u64 *)&towards->meeting != MEETING_MET)
			return;
		__sync_val_compare_and_swap(&mine->meeting, MEETING_MET, parted);
		__sync_val_compare_and_swap(&towards->meeting, MEETING_MET, parted);
		departure->obstacle = 0;
		departure->step = DEPARTURE_PARTED;
		return;
	}
	departure->obstacle = OBSTACLE_UNREAD;
	if (departure->step != DEPARTURE_PARTED || leave_unread(tcp, towards))
		return;
	if (map_delete(MAP(sockets), &key))
		return;
	state->stage = STAGE_LEFT;
	departure->obstacle = 0;
	departure->step = DEPARTURE_LEFT;
	count(departure->reason, PLACE_SOCKET, 0);
	redirect_report(config, state, departure->reason, mine, towards);
}

#endif

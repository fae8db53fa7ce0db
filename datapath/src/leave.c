/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * leave: takes senders that are better off with TCP out of the map of accelerated sockets, one safe step at a time.
 *
 * Hook      iter/tcp: runs for each TCP socket of the network namespace of who opens the pinned iterator, with the
 *           socket locked.
 * Contract  See leave.h. Touches only sockets that the agent has named in `departures`, and tells there how far each is.
 * Cost      When read: one look-up in the storage of each socket of the namespace, two hash look-ups for named ones.
 * Kernel    6.6.
 */
#include "leave.h"

PROGRAM("iter/tcp")
int leave(__u64 *ctx)
{
	void *sk = (void *)ctx[1];
	const struct config *config = config_get();
	struct departure *departure;
	struct socket_state *state;
	struct socket_key key;
	void *tcp;

	if (!sk || !config)
		return 0;
	state = storage_get(MAP(states), sk, 0, 0);
	if (!state || state->stage != STAGE_ENROLLED)
		return 0;
	socket_key_of(&key, state, state->side);
	departure = map_lookup(MAP(departures), &key);
	if (!departure)
		return 0;
	tcp = tcp_sock_of(sk);
	if (tcp)
		leave_step(config, departure, state, tcp);
	return 0;
}

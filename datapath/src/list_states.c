/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * list_states: the storage of every socket that has any, for whoever reads the pinned iterator.
 *
 * Hook      iter/bpf_sk_storage_map over the map `states`.
 * Contract  Writes one struct socket_state for each socket.
 * Cost      When read.
 * Kernel    6.6.
 */
#include "helpers.h"
#include "maps.h"

PROGRAM("iter/bpf_sk_storage_map")
int list_states(__u64 *ctx)
{
	__u64 *meta = (__u64 *)ctx[0];
	void *value = (void *)ctx[3];
	void *list;

	if (!value)
		return 0;
	list = (void *)meta[0];
	list_write(list, value, sizeof(struct socket_state));
	return 0;
}

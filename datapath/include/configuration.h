/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The node's configuration. Until the loader has written it, nothing passes (node is `::`). */
#ifndef UNDERPASS_CONFIGURATION_H
#define UNDERPASS_CONFIGURATION_H

#include "address.h"
#include "helpers.h"
#include "maps.h"

/*
 * Make the verifier forget a known number. After a part with many ways through it (reading a packet, judging it) there
 * is one verifier state for each way, each with other known numbers, and none is pruned against another: what follows is
 * walked once for each. Adding a zero that comes from a map makes them one. Seen on 6.18: pod_egress took 202,000
 * instructions to verify, with this 114,000.
 */
#define FORGET(config, value) ((value) += (config)->_pad[0])

static __always_inline const struct config *config_get(void)
{
	__u32 zero = 0;
	const struct config *config = map_lookup(MAP(config), &zero);

	if (!config || addr_is_zero(&config->node))
		return 0;
	return config;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The node's configuration. Until the loader has written it, nothing passes (node is `::`). */
#ifndef UNDERPASS_CONFIGURATION_H
#define UNDERPASS_CONFIGURATION_H

#include "address.h"
#include "helpers.h"
#include "maps.h"

static __always_inline const struct config *config_get(void)
{
	__u32 zero = 0;
	const struct config *config = map_lookup(MAP(config), &zero);

	if (!config || addr_is_zero(&config->node))
		return 0;
	return config;
}

#endif

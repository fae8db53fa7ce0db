/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who an address is, and where it lives. */
#ifndef UNDERPASS_IDENTITY_H
#define UNDERPASS_IDENTITY_H

#include "helpers.h"
#include "maps.h"

static __always_inline struct endpoint *endpoint_of(const struct addr *address)
{
	return map_lookup(MAP(endpoints), address);
}

static __always_inline struct node *node_of(const struct addr *address)
{
	return map_lookup(MAP(nodes), address);
}

/* The longest prefix that holds the address; 0: nobody we know, the world. */
static __always_inline struct cache_entry *cache_of(const struct addr *address)
{
	struct prefix_key key = { .prefix = 128, .address = *address };

	return map_lookup(MAP(ipcache), &key);
}

#endif

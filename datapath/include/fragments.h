/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments: only the first one carries ports, so they are remembered for the others. A later fragment that comes
 * before its first one, or after LRU took the entry, is refused: its sender sends again.
 *
 * The id is 16 bits and comes round; a fresh first fragment overwrites the entry. An entry can be read by packets of
 * the same two addresses alone.
 */
#ifndef UNDERPASS_FRAGMENTS_H
#define UNDERPASS_FRAGMENTS_H

#include "helpers.h"
#include "maps.h"
#include "reasons.h"

static __always_inline void fragment_remember(const struct addr *source, const struct addr *destination, __be16 id,
					      __u8 protocol, __be16 source_port, __be16 destination_port)
{
	struct fragment_key key = { .source = *source, .destination = *destination, .id = id, .protocol = protocol };
	struct fragment ports = { .source_port = source_port, .destination_port = destination_port };

	map_update(MAP(fragments), &key, &ports, BPF_ANY);
}

static __always_inline int fragment_recall(const struct addr *source, const struct addr *destination, __be16 id,
					   __u8 protocol, __be16 *source_port, __be16 *destination_port)
{
	struct fragment_key key = { .source = *source, .destination = *destination, .id = id, .protocol = protocol };
	struct fragment *ports = map_lookup(MAP(fragments), &key);

	if (!ports)
		return REASON_FRAGMENT_UNKNOWN;
	*source_port = ports->source_port;
	*destination_port = ports->destination_port;
	return 0;
}

#endif

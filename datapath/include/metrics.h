/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counting: packets and bytes by reason and place, per CPU. Cost: one array look-up and two adds. */
#ifndef UNDERPASS_METRICS_H
#define UNDERPASS_METRICS_H

#include "helpers.h"
#include "maps.h"
#include "reasons.h"

static __always_inline void count(__u32 reason, __u32 place, __u32 bytes)
{
	__u32 index = (reason & (METRIC_REASONS - 1)) * METRIC_PLACES + place;
	struct counter *counter = map_lookup(MAP(metrics), &index);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

#endif

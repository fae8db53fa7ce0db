/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* 128-bit addresses: making them from IPv4, comparing them, testing them against ranges. */
#ifndef UNDERPASS_ADDRESS_H
#define UNDERPASS_ADDRESS_H

#include "types.h"

#define MAPPED_WORD to_be32(0xffff)

static __always_inline void addr_from_v4(struct addr *to, __be32 from)
{
	to->words[0] = 0;
	to->words[1] = 0;
	to->words[2] = MAPPED_WORD;
	to->words[3] = from;
}

static __always_inline int addr_equal(const struct addr *a, const struct addr *b)
{
	return a->words[3] == b->words[3] && a->words[2] == b->words[2] && a->words[1] == b->words[1] &&
	       a->words[0] == b->words[0];
}

static __always_inline int addr_is_zero(const struct addr *a)
{
	return !(a->words[0] | a->words[1] | a->words[2] | a->words[3]);
}

static __always_inline int addr_is_v4(const struct addr *a)
{
	return !(a->words[0] | a->words[1]) && a->words[2] == MAPPED_WORD;
}

/* The mask of "no range" is all zero and matches nothing. */
static __always_inline int addr_in_range(const struct addr *a, const struct addr *range, const struct addr *mask)
{
	return mask->words[0] && (a->words[3] & mask->words[3]) == range->words[3] &&
	       (a->words[2] & mask->words[2]) == range->words[2] && (a->words[1] & mask->words[1]) == range->words[1] &&
	       (a->words[0] & mask->words[0]) == range->words[0];
}

#endif
